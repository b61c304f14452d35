"""What the current policy would spend per request at each dual price.

A dual price of ``l`` reward per dollar makes a policy choose the arm with the largest
``reward - l * cost``. As ``l`` grows, a request moves down the upper hull of its arms in the plane
of cost and reward, one arm at a time, at prices that are the slopes of that hull. Collected over
recent contexts, these steps give the mean spend as an exact, decreasing step function of the
price, which a pacer inverts instead of searching for its price by trial and error.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from policy.native import Index, Pointer, function, given, pointers
from policy.terms import Bools, Floats

PRICE_MAX = 1e12
"""Reward per dollar at which even a nano-dollar outweighs any reward."""
_steps = function("curve_steps", Index, Index, *[Pointer] * 10, result=Index)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SpendCurve:
    """Mean expected dollars per request at ascending dual prices.

    Parameters
    ----------
    dual_price : ndarray, shape (g,)
        Ascending; the first is 0.
    cost_usd : ndarray, shape (g,)
        Mean cost of a request at a price just above that of the same index; never increasing.
    arm_cost_usd : ndarray, shape (k,), optional
        Mean cost of a request at each arm; infinite for an arm that was never eligible.
    """

    dual_price: Floats
    cost_usd: Floats
    arm_cost_usd: Floats | None = None

    def price_at(self, target_usd: Floats) -> Floats:
        """Return the least dual price at which the mean cost is at most the target.

        Between two steps the price is interpolated, so that it moves smoothly with the target.
        A target below the least possible spend gives a price above every step.

        Examples
        --------
        >>> curve = SpendCurve(dual_price=np.array([0.0, 1.0, 2.0]),
        ...                    cost_usd=np.array([4.0, 2.0, 1.0]))
        >>> curve.price_at(np.array([5.0, 4.0, 3.0, 1.0, 0.5]))
        array([0. , 0. , 0.5, 2. , 4. ])
        """
        price = np.interp(-target_usd, -self.cost_usd, self.dual_price)
        beyond = target_usd < self.cost_usd[-1]
        # Twice the last step leaves every request at its cheapest arm, also those whose
        # estimates differ a little from the sampled ones.
        return np.where(beyond, min(2.0 * float(self.dual_price[-1]), PRICE_MAX), price)

    def cost_at(self, dual_price: Floats) -> Floats:
        """Return the mean expected dollars per request at these dual prices.

        Examples
        --------
        >>> curve = SpendCurve(dual_price=np.array([0.0, 1.0, 2.0]),
        ...                    cost_usd=np.array([4.0, 2.0, 1.0]))
        >>> curve.cost_at(np.array([0.0, 0.5, 9.0]))
        array([4., 3., 1.])
        """
        return np.interp(dual_price, self.dual_price, self.cost_usd)


def spend_curve(reward: Floats, cost_usd: Floats, eligible: Bools) -> SpendCurve:
    """Return the spend curve of a sample of contexts.

    Parameters
    ----------
    reward : ndarray, shape (r, k)
        What is compared besides the price: the estimate, with a bonus if the policy adds one.
    cost_usd : ndarray, shape (r, k)
        Expected dollars.
    eligible : ndarray of bool, shape (r, k)
        Rows without any eligible arm are left out.

    Raises
    ------
    ValueError
        If no row has an eligible arm.

    Examples
    --------
    >>> curve = spend_curve(np.array([[0.5, 0.9]]), np.array([[1.0, 3.0]]), np.full((1, 2), True))
    >>> curve.dual_price, curve.cost_usd
    (array([0. , 0.2]), array([3., 1.]))
    """
    rows, arms = reward.shape
    most = rows * max(arms - 1, 0)
    now, reached, first = np.empty(rows, np.int64), np.empty(rows), np.empty(rows)
    price, drop = np.empty(1 + most), np.empty(1 + most)
    sums, counts = np.empty(arms), np.empty(arms, np.int64)
    steps = _steps(
        rows, arms,
        *pointers(
            given(reward, np.float64, (rows, arms)), given(cost_usd, np.float64, (rows, arms)),
            given(eligible, np.bool_, (rows, arms)),
            now, reached, first, price[1:], drop[1:], sums, counts,
        ),
    )  # fmt: skip
    open_rows = now >= 0
    known = np.count_nonzero(open_rows)
    if known == 0:
        raise ValueError("a spend curve needs a context with an eligible arm")
    start = float(first[open_rows].mean())
    price[0] = drop[0] = 0.0
    price, drop = np.minimum(price[: 1 + steps], PRICE_MAX), drop[: 1 + steps]
    order = np.argsort(price, kind="stable")
    spent = start - np.cumsum(drop[order]) / known
    return SpendCurve(
        dual_price=price[order],
        cost_usd=np.maximum(spent, 0.0),
        arm_cost_usd=np.where(counts > 0, sums / np.maximum(counts, 1), np.inf),
    )
