"""How many requests of a batch may take their first arm without looking at each alone.

Whether a request fits depends on those before it. Supposing that all before it took their first
arm, what each budget holds at its turn is a running sum; up to the first request for which it
does not fit, the supposition is true.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from policy.choose import Round
from policy.money import INT64_MAX, NANO_PER_USD
from policy.pace import Pacing
from policy.pacer import Standing, affordable, standing_of
from policy.paths import DEPTH_MAX, Pairs
from policy.state import State
from policy.terms import Bools, Floats, Ints

Number = TypeVar("Number", np.int64, np.float64)


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
    pairs, budgets = rounds.pairs.between(start, count), state.budgets
    sums = RunningSums(pairs.place, len(pairs.budgets))
    reserved: Ints = budgets.reserved[pairs.budget] + sums.of(rounds.first_bound[pairs.row])
    fits = reserved <= budgets.limit[pairs.budget] - budgets.settled[pairs.budget]
    if rounds.has_ceilings:
        rows = budgets.rows(pairs.budgets)
        arm_cost = None if state.curve is None else state.curve.arm_cost_usd
        fits &= _below_ceilings(rounds, pairs, rows, sums, arm_cost)
    end = count
    if np.count_nonzero(fits) < len(fits):
        end = pairs.row.item(fits.argmin())
    quick = rounds.quick[start:end]
    if np.count_nonzero(quick) < len(quick):
        end = start + int(quick.argmin())
    return end, reserved[: pairs.starts[end - start]]


def _below_ceilings(
    rounds: Round, pairs: Pairs, rows: Pacing, sums: RunningSums, arm_cost_usd: Floats | None
) -> Bools:
    """Return for each pair whether its per-request ceiling allows the first arm."""
    now = standing_of(rows, rounds.ceiling_usd)
    cost = rounds.first_cost[pairs.row]
    usd = cost / NANO_PER_USD
    cheapest = np.where(rounds.eligible, rounds.cost_nanousd, INT64_MAX).min(axis=1)
    standing = Standing(
        ceiling_usd=now.ceiling_usd[pairs.place],
        requests=now.requests[pairs.place] + sums.before(np.ones(len(cost), np.int64)),
        spent_usd=(rows["spent_nanousd"][pairs.place] + sums.before(cost)) / NANO_PER_USD,
        open_usd2=now.open_usd2[pairs.place] + sums.before(usd * usd),
        noise=now.noise[pairs.place],
    )
    return affordable(
        standing,
        usd,
        cheapest=cost <= cheapest[pairs.row],
        arm_cost_usd=None if arm_cost_usd is None else arm_cost_usd[rounds.first[pairs.row]],
    )


class RunningSums:
    """Sums over the entries with the same number ``below`` a bound, in their order."""

    def __init__(self, numbers: Ints, below: int) -> None:
        self._alone = len(numbers) <= DEPTH_MAX and len(set(numbers.tolist())) == len(numbers)
        if self._alone:
            return
        # numpy sorts 16 bits by radix, several times faster.
        small = numbers.astype(np.int16 if below <= 2**15 else np.int64)
        self._order = small.argsort(kind="stable")
        ordered = numbers[self._order]
        edges = [0, *((ordered[1:] != ordered[:-1]).nonzero()[0] + 1).tolist(), len(numbers)]
        bounds = np.array(edges)
        self._begins, self._lengths = bounds[:-1], bounds[1:] - bounds[:-1]

    def of(self, values: NDArray[Number]) -> NDArray[Number]:
        """Return the sum up to and with each entry, shape (p,)."""
        if self._alone:
            return values
        ordered = values[self._order]
        total: NDArray[Number] = ordered.cumsum()
        total -= (total[self._begins] - ordered[self._begins]).repeat(self._lengths)
        result = np.empty_like(total)
        result[self._order] = total
        return result

    def before(self, values: NDArray[Number]) -> NDArray[Number]:
        """Return the sum of the entries before each, shape (p,), of values that are not negative.

        Nor is it, although the sums of fractions are rounded.
        """
        before: NDArray[Number] = np.maximum(self.of(values) - values, 0)
        return before
