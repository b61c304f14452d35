"""One outcome: release the reservation, spend the true cost, learn.

Usage (or a billed cost) settles, a reward teaches; they may come together or apart, in either
order, late or twice. The first of each counts; the same again has no effect, another content is a
conflict. An outcome whose decision is not known yet is parked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from policy.acceptance import PARK_MS, is_accepted
from policy.money import call_cost_nanousd
from policy.reservations import NONE, Row
from policy.state import Arrival, State
from policy.terms import Learning

Effect = Literal["applied", "duplicate", "parked", "refused"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of an outcome; a refused one has a reason in one word and its detail."""

    effect: Effect
    reason: str = ""
    detail: str = ""


def settle(state: State, arrival: Arrival) -> Verdict:
    """Apply the next outcome of the partition's log; call :func:`pass_over` for a bad record."""
    before = state.gate.position
    pass_over(state, arrival.offset, arrival.at_ms, advance=False)
    verdict = _settle_known(state, arrival)
    if verdict.effect == "parked":
        state.parked[arrival.offset] = (arrival, before)
    state.gate.advance("outcomes", arrival.offset + 1)
    return verdict


def pass_over(state: State, offset: int, at_ms: int, *, advance: bool = True) -> None:
    """Let the log's time go on: what has expired by this record is spent."""
    state.gate.begin("outcomes", offset)
    state.gate.tick(at_ms)
    expire(state, state.clock_ms, cause=2 * offset)
    if advance:
        state.gate.advance("outcomes", offset + 1)


def expire(state: State, now_ms: int, *, cause: int) -> list[int]:
    """Spend the reservations that have expired; return their decisions' offsets.

    ``cause`` names the record that made it happen: twice the outcome's offset, or twice the
    decision's and one.
    """
    # While a log is folded: rows that a later page already shows as expired by this record.
    for offset in state.redo.get(cause, ()):
        _spend_expired(state, state.reservations.row(offset), now_ms)
    due = state.reservations.due(now_ms)
    for offset in due:
        row = state.reservations.row(offset)
        _spend_expired(state, row, now_ms)
        state.reservations.update(offset, row, expired_by=cause)
    return due


def _spend_expired(state: State, row: Row, now_ms: int) -> None:
    """Count a whole reservation as spent, until feedback trues it up."""
    budgets = state.reservations.budgets.texts[row.budgets]
    state.budgets.settle(
        state.budgets.named(budgets),
        decided_ms=row.decided_ms,
        held=row.reserved,
        spent=row.reserved,
        delta_nanousd=row.reserved - row.expected,
        expected_nanousd=row.expected,
        now_ms=now_ms,
    )
    state.freed.add(budgets.rpartition(" ")[2])


def release_parked(state: State, id_: bytes) -> list[tuple[Arrival, Verdict]]:
    """Apply the parked outcomes of a request that has just been decided, as part of that."""
    mine = [parked for parked in state.parked.values() if parked[0].id == id_]
    settled = []
    for arrival, before in mine:
        del state.parked[arrival.offset]
        # The decision alone cannot do this again: a fold must begin where it reads the outcome.
        state.gate.needs = before
        settled.append((arrival, _settle_known(state, arrival)))
    state.gate.needs = None
    return settled


def overdue(state: State) -> list[Arrival]:
    """Remove and return the parked outcomes whose decision can no longer come."""
    _expire_parked(state)
    late, state.late = state.late, []
    return late


def _expire_parked(state: State) -> None:
    while state.parked:
        arrival, _ = next(iter(state.parked.values()))
        if is_accepted(decided_ms=state.clock_ms, outcome_ms=arrival.at_ms):
            return
        del state.parked[arrival.offset]
        state.late.append(arrival)


def _settle_known(state: State, arrival: Arrival) -> Verdict:
    offset = state.reservations.find(arrival.id)
    # While a log is folded a row may be there before its decision's turn has come.
    if offset is None or offset >= state.gate.position.decisions:
        # Room is made here and not only when a worker asks: a fold, which never asks, must park
        # what was parked.
        if len(state.parked) >= state.limits.parked_max:
            _expire_parked(state)
        if len(state.parked) >= state.limits.parked_max:
            return Verdict("refused", "unknown_request", "too many outcomes of unknown requests")
        return Verdict("parked")
    row = state.reservations.row(offset)
    if row.arm == NONE:
        return Verdict("refused", "rejected_request", "the decision was a rejection")
    if not is_accepted(decided_ms=row.decided_ms, outcome_ms=arrival.at_ms):
        return Verdict("refused", "unknown_request", f"decided over {PARK_MS} ms later")
    has_usage = arrival.output_tokens is not None or arrival.cost_nanousd is not None
    usage = _part(has_usage, arrival.offset, arrival.usage_print, row.usage_offset,
                  row.usage_print)  # fmt: skip
    reward = _part(arrival.reward is not None, arrival.offset, arrival.reward_print,
                   row.reward_offset, row.reward_print)  # fmt: skip
    error = _part(arrival.error and not has_usage, arrival.offset, 0, row.error_offset, 0)
    cost = _spend(state, row, arrival) if usage == "new" else None
    changes: dict[str, int] = {}
    if usage == "new":
        changes |= {"usage_offset": arrival.offset, "usage_print": arrival.usage_print}
    if reward == "new":
        changes |= {"reward_offset": arrival.offset, "reward_print": arrival.reward_print}
    if error == "new":
        changes["error_offset"] = arrival.offset
    if changes:
        state.reservations.update(offset, row, **changes)
        _learn(state, offset, row, arrival, cost=cost, rewarded=reward == "new")
    # A part in conflict is refused alone: the other part of the same record still counts.
    for part, verdict in (("usage", usage), ("reward", reward)):
        if verdict == "conflict":
            return Verdict("refused", "conflict", f"another {part} was accepted before")
    return Verdict("applied" if changes else "duplicate")


def _part(present: bool, offset: int, print_: int, known_offset: int, known_print: int) -> str:
    """Return what an outcome's part is: absent, new, a duplicate or a conflict.

    The very record that was accepted is new again: while a log is folded, the pages decide which
    of its effects they already have.
    """
    if not present:
        return "absent"
    if known_offset in (NONE, offset):
        return "new"
    return "duplicate" if print_ == known_print else "conflict"


def _spend(state: State, row: Row, arrival: Arrival) -> int:
    if arrival.cost_nanousd is not None:
        cost = arrival.cost_nanousd
    else:
        cost = call_cost_nanousd(
            row.price(),
            input_tokens=arrival.input_tokens or 0,
            output_tokens=arrival.output_tokens or 0,
            cached_tokens=arrival.cached_tokens,
        )
    # Expired before this record, and not by it: then all of the reservation is spent already.
    expired = row.expired_by != NONE
    held, charged = (0, row.reserved) if expired else (row.reserved, 0)
    budgets = state.reservations.budgets.texts[row.budgets]
    state.budgets.settle(
        state.budgets.named(budgets),
        decided_ms=row.decided_ms,
        held=held,
        spent=cost - charged,
        delta_nanousd=cost - (row.reserved if expired else row.expected),
        expected_nanousd=0 if expired else row.expected,
        now_ms=state.clock_ms,
    )
    state.freed.add(budgets.rpartition(" ")[2])
    return cost


def _learn(
    state: State, offset: int, row: Row, arrival: Arrival, *, cost: int | None, rewarded: bool
) -> None:
    arm = state.reservations.arms.texts[row.arm]
    reward = arrival.reward if rewarded else None
    state.windows.add(
        arm,
        state.reservations.segments.texts[row.segment],
        at_ms=arrival.at_ms,
        reward=reward,
        cost_nanousd=cost,
        latency_ms=None if cost is None else arrival.latency_ms,
        error=arrival.error,
    )
    if (cost is None and reward is None) or not state.gate.passes(state.page_of_arm(arm)):
        return
    if cost is not None and arrival.output_tokens is not None:
        state.lengths_of(arm).add(arrival.output_tokens)
    state.policy.learn(
        Learning(
            arm=arm,
            features=state.reservations.features(offset),
            input_tokens=row.input_tokens,
            age=state.reservations.decided_since(offset, before=state.gate.position.decisions),
            reward=reward,
            cost_nanousd=cost,
            output_tokens=None if cost is None else arrival.output_tokens,
            price=None if cost is None else row.price(),
            latency_ms=None if cost is None else arrival.latency_ms,
            against=arrival.against if rewarded else None,
        )
    )
