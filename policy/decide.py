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

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import compress

import numpy as np

from policy.choices import Choices
from policy.choose import Round, make_round, reserve_best
from policy.fitting import first_arms_fit
from policy.outcomes import Arrival
from policy.requests import UNCONSTRAINED, Incoming, Requests
from policy.reservation_rows import NONE
from policy.settle import Verdict, expire, release_parked
from policy.state import State
from policy.take import Taken, take
from policy.terms import Bools, Ints
from policy.waiting import take_due, wait

ONE_BY_ONE = 16
"""Requests that are looked at alone, after one did not fit, before all others are tried again."""


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
    choices: Choices
    duplicates: list[Incoming]
    conflicts: list[Incoming]
    released: list[tuple[Arrival, Verdict]]
    waited: list[Incoming]
    waiting_before: int
    fresh_from: int
    curve_at: int


def decide(state: State, requests: Requests | Sequence[Incoming], *, now_ms: int) -> Decided:
    """Decide the next requests of the partition, and those waiting whose money was freed.

    Parameters
    ----------
    state : State
        Changed: the state contains the decisions when this returns.
    requests : Requests or sequence of Incoming
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
    state.budgets.journal.begin()
    expired = expire(state, now_ms, cause=2 * first_offset + 1)
    waiting_before = len(state.waiting)
    width = state.dimensions + 1
    if not isinstance(requests, Requests):
        requests = Requests.of(requests, width=width)
    fresh, duplicates, conflicts = _new_requests(state, requests)
    again = take_due(state, now_ms)
    batch = fresh.after(Requests.of(again, width=width)) if again else fresh
    rolls = len(state.budgets.journal)
    paths = state.budgets.paths_of(batch.budgets)
    pairs = state.budgets.paths.pairs(paths)
    state.budgets.roll(pairs.budgets, now_ms)
    rounds = make_round(state, batch, paths, pairs, now_ms=now_ms)
    choices, decided = _Batch(state, rounds, batch, now_ms).choose()
    released: list[tuple[Arrival, Verdict]] = []
    if len(choices):
        taken = _taken(state, choices, decided, first_offset=first_offset, now_ms=now_ms)
        take(state, taken)
        released = release_parked(state, taken.requests.ids)
        used = set(taken.pairs.budget.tolist())
        state.budgets.undo(undo_from=rolls, keep=used)
        state.gate.tick(now_ms)
    else:
        state.budgets.undo(undo_from=0)
        state.reservations.revive(expired)
        state.curve, state.curve_at = curve
    return Decided(
        first_offset=first_offset,
        now_ms=now_ms,
        batch=min(compress(batch.offsets, decided.tolist()), default=0),
        outcomes=state.gate.position.outcomes,
        rounds=rounds,
        choices=choices,
        duplicates=duplicates,
        conflicts=conflicts,
        released=released,
        waited=[batch.row(row) for row in (~decided).nonzero()[0].tolist()],
        waiting_before=waiting_before,
        fresh_from=fresh.offsets[0] if len(fresh) else -1,
        curve_at=-1 if state.curve is None else state.curve_at,
    )


@dataclass(slots=True, eq=False)
class _Batch:
    """A batch while its requests are given their arms, in order."""

    state: State
    rounds: Round
    requests: Requests
    now_ms: int
    column: Ints = field(init=False)
    reserved: Ints = field(init=False)
    expected: Ints = field(init=False)
    caps: Ints = field(init=False)
    reserved_after: Ints = field(init=False)
    decided: Bools = field(init=False)
    rejected: dict[int, str] = field(default_factory=dict)
    why_not: dict[int, Sequence[int]] = field(default_factory=dict)

    def choose(self) -> tuple[Choices, Bools]:
        """Return the choices, and which requests were decided; the others wait now."""
        rounds, requests, budgets = self.rounds, self.requests, self.state.budgets
        count = len(requests)
        self.column = np.full(count, -1)
        self.reserved, self.expected = np.zeros(count, np.int64), np.zeros(count, np.int64)
        self.caps = np.zeros(count, np.int64)
        self.reserved_after = np.zeros(len(rounds.pairs.row), np.int64)
        self.decided = np.ones(count, np.bool_)
        places = rounds.pairs.budgets
        names = [budgets.names[index] for index in places.tolist()]
        standing = budgets.window_start[places], budgets.limit[places], budgets.settled[places]
        row, alone = 0, ONE_BY_ONE
        while row < count:
            end, after = first_arms_fit(self.state, rounds, row)
            # Where few fit, trying all again costs more than it saves.
            alone = ONE_BY_ONE if end - row >= alone else 2 * alone
            self._take_first_arms(row, end, after)
            row = min(end + alone, count)
            for single in range(end, row):
                self._take_alone(single)
        choices = Choices(
            requests=requests,
            rounds=rounds,
            arms=self.state.catalog.arms,
            rows=self.decided.nonzero()[0],
            column=self.column,
            reserved_nanousd=self.reserved,
            max_output_tokens=self.caps,
            reserved_after=self.reserved_after,
            rejected=self.rejected,
            why_not=self.why_not,
            budget_names=names,
            window_start_ms=standing[0],
            limit_nanousd=standing[1],
            settled_nanousd=standing[2],
        )
        return choices, self.decided

    def _take_first_arms(self, row: int, end: int, reserved_after: Ints) -> None:
        if row == end:
            return
        rounds, rows = self.rounds, slice(row, end)
        self.column[rows] = rounds.first[rows]
        self.reserved[rows] = rounds.first_bound[rows]
        self.expected[rows] = rounds.first_cost[rows]
        self.caps[rows] = self.requests.max_output_tokens[rows]
        starts = rounds.pairs.starts
        self.reserved_after[starts[row] : starts[end]] = reserved_after
        self._hold(row, end)

    def _hold(self, row: int, end: int) -> None:
        self.state.budgets.hold(
            self.rounds.pairs.between(row, end),
            reserved=self.reserved,
            expected_nanousd=self.expected,
        )

    def _take_alone(self, row: int) -> None:
        """Choose for one request, or let it wait for money in flight."""
        state, rounds, requests = self.state, self.rounds, self.requests
        constraints = requests.constraints.get(row, UNCONSTRAINED)
        if constraints.deadline_ms is not None and self.now_ms > constraints.deadline_ms:
            self.rejected[row] = "deadline"
        elif rounds.paths[row] == 0:
            self.rejected[row] = "unknown_budget"
        elif not rounds.eligible[row].any():
            self.rejected[row] = "no_arm"
        else:
            patient = self.now_ms < requests.at_ms[row] + state.limits.defer_ms
            found = reserve_best(state, rounds, row, requests, patient=patient)
            if found.arm is None:
                full = len(state.waiting) >= state.limits.deferred_max
                known = requests.ids[row] in state.waiting
                if found.rejected == "budget_busy" and (known or not full):
                    wait(state, requests.row(row))
                    self.decided[row] = False
                    return
                self.rejected[row] = found.rejected
            else:
                self.column[row] = found.arm
                self.reserved[row] = found.reserved_nanousd
                self.expected[row] = rounds.cost_nanousd[row, found.arm]
                self.caps[row] = found.max_output_tokens
            self.why_not[row] = found.why_not
        self._hold(row, row + 1)
        pairs = slice(rounds.pairs.starts[row], rounds.pairs.starts[row + 1])
        self.reserved_after[pairs] = state.budgets.reserved[rounds.pairs.budget[pairs]]


def _taken(
    state: State, choices: Choices, decided: Bools, *, first_offset: int, now_ms: int
) -> Taken:
    """Return what takes effect, without the requests that wait."""
    rounds, requests, pairs = choices.rounds, choices.requests, choices.rounds.pairs
    paths, column, explored = rounds.paths, choices.column, choices.explored
    reserved, expected = choices.reserved_nanousd, choices.cost_nanousd
    if len(choices) < len(requests):
        requests, pairs = requests.where(decided), pairs.where(decided)
        paths, column, explored = paths[decided], column[decided], explored[decided]
        reserved, expected = reserved[decided], expected[decided]
    for id_ in requests.ids if state.waiting else ():
        state.waiting.pop(id_, None)
    return Taken(
        offsets=np.arange(first_offset, first_offset + len(requests)),
        requests=requests,
        column=column,
        arms=[arm.arm for arm in choices.arms],
        blank=state.columns.rows,
        explored=explored,
        reserved_nanousd=reserved,
        expected_nanousd=expected,
        expires_ms=now_ms + state.limits.reservation_ttl_ms,
        pairs=pairs,
        paths=paths,
        dual_price=rounds.dual_price,
        planned_usd=rounds.planned_usd,
        now_ms=now_ms,
    )


def _new_requests(
    state: State, requests: Requests
) -> tuple[Requests, list[Incoming], list[Incoming]]:
    """Divide requests into new ones, repeated ones, and ones that reuse an id."""
    ids = requests.ids
    found = state.reservations.find_all(ids)
    new = not np.count_nonzero(found != NONE) and len(set(ids)) == len(ids)
    if new and (not state.waiting or state.waiting.keys().isdisjoint(ids)):
        return requests, [], []
    kept = np.ones(len(ids), np.bool_)
    duplicates: list[Incoming] = []
    conflicts: list[Incoming] = []
    here: dict[bytes, int] = {}
    for row, (id_, offset) in enumerate(zip(ids, found.tolist(), strict=True)):
        known = here.get(id_)
        if known is None:
            known = state.waiting.get(id_)
        if known is None and offset != NONE:
            known = state.reservations.row(offset).request_print
        if known is None:
            here[id_] = requests.request_prints[row]
            continue
        kept[row] = False
        same = known == requests.request_prints[row]
        (duplicates if same else conflicts).append(requests.row(row))
    return requests.where(kept), duplicates, conflicts
