"""Outcomes: release the reservation, spend the true cost, learn.

Usage (or a billed cost) settles, a reward teaches; they may come together or apart, in either
order, late or twice. The first of each counts; the same again has no effect, another content is a
conflict. An outcome whose decision is not known yet is parked.

Outcomes without any such trouble are *plain*, and runs of them take effect together
(:mod:`policy.effects`). How the log was divided into calls or runs changes nothing, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from policy.acceptance import PARK_MS, is_accepted
from policy.effects import apply, spend_expired
from policy.outcomes import Arrival, Arrivals
from policy.paths import Pairs
from policy.reservation_rows import NONE
from policy.state import State
from policy.terms import Bools, Ints

Effect = Literal["applied", "duplicate", "parked", "refused"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of an outcome; a refused one has a reason in one word and its detail."""

    effect: Effect
    reason: str = ""
    detail: str = ""


APPLIED = Verdict("applied")


def settle(state: State, arrival: Arrival) -> Verdict:
    """Apply the next outcome of the partition's log; call :func:`pass_over` for a bad record."""
    return settle_all(state, Arrivals.of([arrival]))[0]


def settle_all(state: State, arrivals: Arrivals) -> list[Verdict]:
    """Apply the next outcomes of the partition's log, in order; return what became of each."""
    verdicts: list[Verdict] = []
    clock = np.maximum.accumulate(np.maximum(arrivals.at_ms, state.clock_ms))
    cuts = state.gate.cuts("outcomes")
    known = _Known.of(state, arrivals)
    start = 0
    while start < len(arrivals):
        offset, before = arrivals.offsets.item(start), state.gate.position
        state.gate.begin("outcomes", offset)
        state.gate.tick(clock.item(start))
        if expire(state, clock.item(start), cause=2 * offset):
            known = _Known.of(state, arrivals)
        if known.plain[start]:
            end, pairs = _end_of_run(state, arrivals, known, clock, start, cuts)
            rows, part = slice(start, end), arrivals.between(start, end)
            apply(
                state, part, known.decision[rows], known.rows[rows], pairs=pairs,
                usage=part.has_usage, reward=part.has_reward,
            )  # fmt: skip
            verdicts += [APPLIED] * (end - start)
        else:
            end = start + 1
            arrival = arrivals.row(start)
            verdict = _settle_one(state, arrival)
            if verdict.effect == "parked":
                state.parked[offset] = (arrival, before)
            verdicts.append(verdict)
        state.gate.tick(clock.item(end - 1))
        state.gate.advance("outcomes", arrivals.offsets.item(end - 1) + 1)
        start = end
    return verdicts


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Known:
    """What is known of the decisions of outcomes, shape (n,); -1 where there is none yet.

    ``plain`` is where an outcome takes effect whole.
    """

    decision: Ints
    rows: NDArray[Any]
    plain: Bools

    @classmethod
    def of(cls, state: State, arrivals: Arrivals) -> _Known:
        # While a log is folded a row may be there before its decision's turn has come.
        before = state.gate.position.decisions
        decision, rows = state.reservations.decisions(arrivals.ids, before=before)
        usage, reward = arrivals.has_usage, arrivals.has_reward
        # An unknown decision has no arm.
        plain = (rows["arm"] != NONE) & (rows["decided_ms"] <= arrivals.at_ms + PARK_MS)
        once = len(set(decision.tolist())) == len(decision)
        for present, column in ((usage, "usage_offset"), (reward, "reward_offset")):
            first = (rows[column] == NONE) | (rows[column] == arrivals.offsets)
            if not once:
                first &= _first_of_each(decision, present)
            plain &= ~present | first
        plain &= usage | (reward & ~arrivals.error)
        return cls(decision=decision, rows=rows, plain=plain)


def _first_of_each(decision: Ints, present: Bools) -> Bools:
    """Return False where an earlier row of the same decision has the part as well."""
    places = present.nonzero()[0].tolist()
    result = np.ones(len(decision), np.bool_)
    seen: set[int] = set()
    for place in places:
        number = decision.item(place)
        result[place] = number not in seen
        seen.add(number)
    return result


def _end_of_run(
    state: State, arrivals: Arrivals, known: _Known, clock: Ints, start: int, cuts: Sequence[int]
) -> tuple[int, Pairs]:
    """Return the row before which something else happens than outcomes taking effect.

    That is an outcome that is not plain, an expiry, a new window, or the end of what some page
    contains. The windows of the first row's budgets are rolled if it settles. The pairs are of the
    run's rows, counted from its start, as far as they settle.
    """
    clocks, offsets, end = clock[start:], arrivals.offsets, len(arrivals)
    alarm_ms = max(state.reservations.alarm_ms, clock.item(start))
    if end > start + 1:
        # The clock never goes back.
        quiet = int(clocks.searchsorted(alarm_ms, side="right"))
        end = start + min(_first(~known.plain[start:]), quiet)
        causes = [cause // 2 for cause in state.redo if cause % 2 == 0]
        for limit in (*cuts, *causes):
            if limit > offsets[start]:
                end = min(end, int(np.searchsorted(offsets, limit)))
    # A reward alone touches no budget, so it does not begin a window either.
    paths = (arrivals.has_usage[start:end] * known.rows["budgets"][start:end]).astype(np.int64)
    pairs = state.budgets.paths.pairs(paths)
    state.budgets.roll(pairs.budget[: pairs.starts[1]], clock.item(start))
    ended = state.budgets.ended(pairs.budget, clocks[pairs.row])
    if np.count_nonzero(ended):
        end = start + pairs.row.item(ended.argmax())
        pairs = pairs.between(0, end - start)
    return end, pairs


def _first(stop: Bools) -> int:
    return int(stop.argmax()) if stop.any() else len(stop)


def pass_over(state: State, offset: int, at_ms: int) -> None:
    """Let the log's time go on: what has expired by this record is spent."""
    state.gate.begin("outcomes", offset)
    state.gate.tick(at_ms)
    expire(state, state.clock_ms, cause=2 * offset)
    state.gate.advance("outcomes", offset + 1)


def expire(state: State, now_ms: int, *, cause: int) -> list[int]:
    """Spend the reservations that have expired; return their decisions' offsets.

    ``cause`` names the record that made it happen: twice the outcome's offset, or twice the
    decision's and one.
    """
    # While a log is folded: rows that a later page already shows as expired by this record.
    spend_expired(state, state.redo.get(cause, ()), now_ms)
    due = state.reservations.due(now_ms)
    if due:
        spend_expired(state, due, now_ms)
        state.reservations.change(np.array(due, np.int64), expired_by=cause)
    return due


def release_parked(state: State, ids: Sequence[bytes]) -> list[tuple[Arrival, Verdict]]:
    """Apply the parked outcomes of requests that have just been decided, as part of that."""
    if not state.parked:
        return []
    decided = set(ids)
    settled = []
    for arrival, before in [p for p in state.parked.values() if p[0].id in decided]:
        del state.parked[arrival.offset]
        # The decision alone cannot do this again: a fold must begin where it reads the outcome.
        state.gate.needs = before
        settled.append((arrival, _settle_one(state, arrival)))
    state.gate.needs = None
    return settled


def overdue(state: State, *, read_ms: int) -> list[Arrival]:
    """Remove and return the parked outcomes whose decision can no longer come.

    ``read_ms`` is the time up to which the partition's requests were read. Outcomes may be far
    ahead of them, and a worker that begins anew may decide what is still to be read, or waits,
    before it has read the outcomes that moved our clock.
    """
    if state.parked:
        waiting = [queue[0].at_ms for queue in state.deferred.values()]
        _expire_parked(state, min([state.clock_ms, read_ms, *waiting]))
    late, state.late = state.late, []
    return late


def _expire_parked(state: State, clock_ms: int) -> None:
    while state.parked:
        arrival, _ = next(iter(state.parked.values()))
        if is_accepted(decided_ms=clock_ms, outcome_ms=arrival.at_ms):
            return
        del state.parked[arrival.offset]
        state.late.append(arrival)


def _settle_one(state: State, arrival: Arrival) -> Verdict:
    """Apply one outcome, whatever may be wrong with it."""
    offset = state.reservations.find(arrival.id)
    if offset is None or offset >= state.gate.position.decisions:
        # Room is made here and not only when a worker asks: a fold, which never asks, must park
        # what was parked.
        if len(state.parked) >= state.limits.parked_max:
            _expire_parked(state, state.clock_ms)
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
    new = [part == "new" for part in (usage, reward, error)]
    if any(new):
        at = np.array([offset], np.int64)
        pairs = state.budgets.paths.pairs(np.array([row.budgets], np.int64))
        if new[0]:
            # A fold rolls where the log's time says so, wherever the live state rolled before.
            state.budgets.roll(pairs.budgets, state.clock_ms)
        apply(
            state, Arrivals.of([arrival]), at, state.reservations.rows(at), pairs=pairs,
            usage=np.array(new[:1]), reward=np.array(new[1:2]), error_offset=new[2],
        )  # fmt: skip
    # A part in conflict is refused alone: the other part of the same record still counts.
    for part, verdict in (("usage", usage), ("reward", reward)):
        if verdict == "conflict":
            return Verdict("refused", "conflict", f"another {part} was accepted before")
    return APPLIED if any(new) else Verdict("duplicate")


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
