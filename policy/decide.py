"""One batch of requests: rank the arms, price them, and reserve the best that fits.

READ FIRST. The order for each request: what the policy prefers at the budget's dual price; what a
per-request ceiling allows; what the hard caps of the whole path have free. An arm is reserved at
an upper bound (input and output cap at the pinned price). Three things keep that bound from
starving a budget whose callers ask for far more output than they use:

- the pacers count expected dollars, not bounds;
- where the bound does not fit only because of money in flight, the request waits for it;
- where the bound cannot fit any more, or the request has waited for ``defer_ms``, but the learned
  upper quantile of the output fits, the output cap is lowered to that, and the caller must pass
  the lowered cap to the model.

A request is rejected for its budget only when no eligible arm could fit even if everything in
flight were settled at nothing. Until then it waits: each reservation settles or expires.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from policy.choose import Round, make_round, reserve_best
from policy.money import Price
from policy.reservations import NONE, Row
from policy.settle import Verdict, expire, release_parked
from policy.state import Arrival, Incoming, State

RETRY_MAX = 64
"""Waiting requests of one budget that are tried again at a time."""


@dataclass(slots=True, kw_only=True, eq=False)
class Choice:
    """What was decided for one request; ``row`` is its row in the round's arrays.

    ``column`` is the chosen arm's, and ``why_not`` is empty where it is that of the round.
    """

    request: Incoming
    row: int
    column: int = -1
    arm: str | None = None
    rejected: str | None = None
    max_output_tokens: int = 0
    reserved_nanousd: int = 0
    price: Price | None = None
    reward: float = 0.0
    cost_nanousd: int = 0
    propensity: float = 0.0
    explored: bool = False
    budgets: Sequence[tuple[str, int, int, int, int, float, float]] = ()
    why_not: Sequence[int] = ()


@dataclass(slots=True, kw_only=True, eq=False)
class Decided:
    """What one call of :func:`decide` did.

    ``choices[i]`` is to be written at offset ``first_offset + i`` of the decisions. ``batch`` is
    the offset of the first request among them. Conflicts are requests whose id was decided before
    with another content.

    A replay needs the whole round: ``waited`` are the requests that were ranked in it and wait,
    ``waiting_before`` is how many waited before it, ``fresh_from`` the offset of its first new
    request (-1 without one), ``curve_at`` the position of its spend curve (-1 without one).
    """

    first_offset: int
    now_ms: int
    batch: int
    outcomes: int
    rounds: Round
    choices: list[Choice]
    duplicates: list[Incoming]
    conflicts: list[Incoming]
    released: list[tuple[Arrival, Verdict]]
    waited: list[Incoming]
    waiting_before: int
    fresh_from: int
    curve_at: int


def decide(state: State, requests: Sequence[Incoming], *, now_ms: int) -> Decided:
    """Decide the next requests of the partition, and those waiting whose money was freed.

    Parameters
    ----------
    state : State
        Changed: the state contains the decisions when this returns.
    requests : sequence of Incoming
        In the order of their offsets.
    now_ms : int
        Time of the latest record; the state's own clock if that is later.

    Returns
    -------
    Decided
        Requests that wait for money in flight are in none of its lists.
    """
    now_ms = max(now_ms, state.clock_ms)
    first_offset = state.gate.position.decisions
    state.gate.begin("decisions", first_offset)
    # Without a decision nothing in the log would say that time has gone on: then all is undone.
    curve = state.curve, state.curve_at
    state.budgets.begin_journal()
    expired = expire(state, now_ms, cause=2 * first_offset + 1)
    waiting_before = len(state.waiting)
    fresh, duplicates, conflicts = _new_requests(state, requests)
    batch = [*_waiting(state, now_ms), *fresh]
    rolls = state.budgets.journal_length()
    for request in batch:
        state.budgets.roll(state.budgets.path(request.budget), now_ms)
    rounds = make_round(state, batch, now_ms=now_ms)
    choices: list[Choice] = []
    released: list[tuple[Arrival, Verdict]] = []
    waited: list[Incoming] = []
    for row, request in enumerate(batch):
        choice = _decide_one(state, rounds, row, request, now_ms=now_ms)
        if choice is None:
            _wait(state, request)
            waited.append(request)
            continue
        state.waiting.pop(request.id, None)
        offset = first_offset + len(choices)
        take(state, offset, choice, now_ms=now_ms)
        choices.append(choice)
        released += release_parked(state, request.id)
    if choices:
        taken = {i for c in choices for i in rounds.paths[c.row]}
        state.budgets.end_journal(undo_from=rolls, keep=taken)
        state.gate.tick(now_ms)
    else:
        state.budgets.end_journal(undo_from=0)
        state.reservations.revive(expired)
        state.curve, state.curve_at = curve
    return Decided(
        first_offset=first_offset,
        now_ms=now_ms,
        batch=min((c.request.offset for c in choices), default=0),
        outcomes=state.gate.position.outcomes,
        rounds=rounds,
        choices=choices,
        duplicates=duplicates,
        conflicts=conflicts,
        released=released,
        waited=waited,
        waiting_before=waiting_before,
        fresh_from=fresh[0].offset if fresh else -1,
        curve_at=-1 if state.curve is None else state.curve_at,
    )


def take(
    state: State, offset: int, choice: Choice, *, now_ms: int, expires_ms: int | None = None
) -> None:
    """Let a decision take effect: live from :func:`decide`, or folded from the log."""
    request, price = choice.request, choice.price
    state.gate.begin("decisions", offset)
    names = " ".join([position[0] for position in choice.budgets])
    remembered = state.reservations
    row = Row.decided(
        explored=choice.explored,
        arm=NONE if choice.arm is None else remembered.arms.number(choice.arm),
        segment=remembered.segments.number(request.segment),
        budgets=remembered.budgets.number(names),
        input_tokens=request.input_tokens,
        request=request.id,
        request_print=request.request_print,
        reserved=choice.reserved_nanousd,
        expected=choice.cost_nanousd,
        decided_ms=now_ms,
        expires_ms=expires_ms or now_ms + state.limits.reservation_ttl_ms,
        price=price,
    )
    remembered.add(offset, row, request.features)
    if choice.arm is not None and state.gate.passes(state.page_of_arm(choice.arm)):
        features = request.features.astype(np.float64)
        state.policy.decided(choice.arm, features, explored=choice.explored)
    state.budgets.take(
        state.budgets.named(names),
        reserved=choice.reserved_nanousd,
        expected_nanousd=choice.cost_nanousd,
        dual_price=[position[5] for position in choice.budgets],
        planned_usd=[position[6] for position in choice.budgets],
        now_ms=now_ms,
    )
    state.remember_context(request.features, request.input_tokens, request.max_output_tokens)
    state.gate.advance("decisions", offset + 1)


def _new_requests(
    state: State, requests: Sequence[Incoming]
) -> tuple[list[Incoming], list[Incoming], list[Incoming]]:
    """Divide requests into new ones, repeated ones, and ones that reuse an id."""
    fresh: list[Incoming] = []
    duplicates: list[Incoming] = []
    conflicts: list[Incoming] = []
    here: dict[bytes, int] = {}
    for request in requests:
        known = here.get(request.id)
        if known is None:
            known = state.waiting.get(request.id)
        if known is None:
            offset = state.reservations.find(request.id)
            known = None if offset is None else state.reservations.row(offset).request_print
        if known is None:
            here[request.id] = request.request_print
            fresh.append(request)
        elif known == request.request_print:
            duplicates.append(request)
        else:
            conflicts.append(request)
    return fresh, duplicates, conflicts


def _waiting(state: State, now_ms: int) -> list[Incoming]:
    """Take those waiting requests out of their queues whose turn has come."""
    due: list[Incoming] = []
    for budget in list(state.deferred):
        queue = state.deferred[budget]
        oldest = queue[0]
        overdue = now_ms >= oldest.at_ms + state.limits.defer_ms or (
            oldest.deadline_ms is not None and now_ms > oldest.deadline_ms
        )
        if not overdue and not _shares_root(budget, state.freed):
            continue
        due.extend(queue.popleft() for _ in range(min(len(queue), RETRY_MAX)))
        if not queue:
            del state.deferred[budget]
    state.freed.clear()
    return sorted(due, key=lambda r: r.offset)


def _shares_root(budget: str, freed: set[str]) -> bool:
    root = budget.partition("/")[0]
    return any(other.partition("/")[0] == root for other in freed)


def _wait(state: State, request: Incoming) -> None:
    queue = state.deferred.setdefault(request.budget, deque())
    # One that waited before goes back before those that came after it.
    if request.id in state.waiting:
        place = next((i for i, r in enumerate(queue) if r.offset > request.offset), len(queue))
        queue.insert(place, request)
    else:
        queue.append(request)
    state.waiting[request.id] = request.request_print


def _decide_one(
    state: State, rounds: Round, row: int, request: Incoming, *, now_ms: int
) -> Choice | None:
    """Return the choice for one request, or None if it is to wait for money in flight."""
    if request.deadline_ms is not None and now_ms > request.deadline_ms:
        return _reject(state, rounds, row, request, "deadline")
    if not rounds.paths[row]:
        return _reject(state, rounds, row, request, "unknown_budget")
    if not rounds.any_eligible[row]:
        return _reject(state, rounds, row, request, "no_arm")
    patient = now_ms < request.at_ms + state.limits.defer_ms
    found = reserve_best(state, rounds, row, request, patient=patient)
    column = found.arm
    if column is None:
        full = len(state.waiting) >= state.limits.deferred_max and request.id not in state.waiting
        if found.rejected == "budget_busy" and not full:
            return None
        return _reject(state, rounds, row, request, found.rejected, found.why_not)
    arm = state.catalog.arms[column]
    foremost = column == rounds.first[row]
    return Choice(
        request=request,
        row=row,
        column=column,
        arm=arm.arm,
        max_output_tokens=found.max_output_tokens,
        reserved_nanousd=found.reserved_nanousd,
        price=arm.price,
        reward=rounds.reward.item(row, column),
        cost_nanousd=rounds.cost_nanousd.item(row, column),
        propensity=(
            rounds.propensity.item(row, column) if foremost else _inherited(rounds, row, column)
        ),
        explored=rounds.explored[row] and foremost,
        budgets=_positions(state, rounds, row, request, found.reserved_nanousd),
        why_not=found.why_not,
    )


def _inherited(rounds: Round, row: int, column: int) -> float:
    """Return how likely an arm was that was not first: it inherits from those that do not fit."""
    passed_over = (rounds.score[row] > rounds.score[row, column]) & rounds.eligible[row]
    chances = rounds.propensity[row]
    return float(min(chances[column] + chances[passed_over].sum(), 1.0))


def _reject(
    state: State, rounds: Round, row: int, request: Incoming, reason: str,
    why_not: Sequence[int] = (),
) -> Choice:  # fmt: skip
    return Choice(
        request=request,
        row=row,
        rejected=reason,
        budgets=_positions(state, rounds, row, request, 0),
        why_not=why_not,
    )


def _positions(
    state: State, rounds: Round, row: int, request: Incoming, reserved: int
) -> list[tuple[str, int, int, int, int, float, float]]:
    """Return where each budget of the path stands once this decision has taken effect."""
    budgets = state.budgets
    return [
        (
            budgets.names[i],
            budgets.window_start[i],
            budgets.limit[i],
            budgets.reserved[i] + reserved,
            budgets.settled[i],
            *rounds.budget_price[i],
        )
        for i in rounds.paths[row]
    ]
