"""How many requests of a batch may take their first arm without looking at each alone.

Whether a request fits depends on those before it. Supposing that all before it took their first
arm, what each budget holds at its turn is a running sum; up to the first request for which it
does not fit, the supposition is true.
"""

from __future__ import annotations

import numpy as np

from policy.choose import Round
from policy.money import NANO_PER_USD
from policy.pace import Pacing
from policy.pacer import Standing, affordable, standing_of
from policy.paths import DEPTH_MAX, Pairs
from policy.state import State
from policy.terms import Bools, Floats, Ints


def first_arms_fit(state: State, rounds: Round, start: int) -> tuple[int, Ints]:
    """Return before which row the first arms stop to fit, if those from ``start`` on are taken.

    Returns
    -------
    end : int
        ``start`` if the row there does not fit.
    reserved : ndarray of int64
        For the pairs of the rows from ``start`` to ``end``: what the budget holds after it.
    """
    count = len(rounds.quick)
    if not rounds.quick[start]:
        return start, np.zeros(0, np.int64)
    pairs = rounds.pairs.between(start, count)
    rows = state.budgets.rows(pairs.budgets)
    sums = _RunningSums(pairs.place)
    reserved = rows["reserved"][pairs.place] + sums.of(rounds.first_bound[pairs.row])
    free = state.budgets.limit[pairs.budgets] - rows["settled"]
    fits = reserved <= free[pairs.place]
    if not np.isnan(rounds.ceiling_usd).all():
        arm_cost = None if state.curve is None else state.curve.arm_cost_usd
        fits &= _below_ceilings(rounds, pairs, rows, sums, arm_cost)
    end = int(pairs.row[~fits].min(initial=count))
    stops = ~rounds.quick[start:end]
    if stops.any():
        end = start + int(stops.argmax())
    return end, reserved[: pairs.starts[end - start]]


def _below_ceilings(
    rounds: Round, pairs: Pairs, rows: Pacing, sums: _RunningSums, arm_cost_usd: Floats | None
) -> Bools:
    """Return for each pair whether its per-request ceiling allows the first arm."""
    now = standing_of(rows, rounds.ceiling_usd)
    cost = rounds.first_cost[pairs.row]
    usd = cost / NANO_PER_USD
    standing = Standing(
        ceiling_usd=now.ceiling_usd[pairs.place],
        requests=now.requests[pairs.place] + sums.of(np.ones(len(cost), np.int64)) - 1.0,
        spent_usd=(rows["spent_nanousd"][pairs.place] + sums.of(cost) - cost) / NANO_PER_USD,
        open_usd2=now.open_usd2[pairs.place] + sums.of(usd * usd) - usd * usd,
        noise=now.noise[pairs.place],
    )
    return affordable(
        standing,
        usd,
        cheapest=rounds.first_cheapest[pairs.row],
        arm_cost_usd=None if arm_cost_usd is None else arm_cost_usd[rounds.first[pairs.row]],
    )


class _RunningSums:
    """Sums over the entries with the same number, up to and including each entry."""

    def __init__(self, numbers: Ints) -> None:
        self._alone = len(numbers) <= DEPTH_MAX and len(set(numbers.tolist())) == len(numbers)
        if self._alone:
            return
        # numpy sorts 16 bits by radix, several times faster.
        small = numbers.astype(np.int16 if numbers.max(initial=0) < 2**15 else np.int64)
        self._order = small.argsort(kind="stable")
        ordered = numbers[self._order]
        self._begins = np.flatnonzero(np.diff(ordered, prepend=-1))
        self._lengths = np.diff(self._begins, append=len(numbers))

    def of(self, values: Ints | Floats) -> Ints | Floats:
        """Return the running sum of values, shape (p,)."""
        if self._alone:
            return values
        ordered = values[self._order]
        total = ordered.cumsum()
        total -= np.repeat((total - ordered)[self._begins], self._lengths)
        result = np.empty_like(total)
        result[self._order] = total
        return result
