"""Which arms to keep deployed for a stage, and how to share requests among the deployed ones.

The set is chosen by a small mixed-integer program. Within it each request's probabilities solve a
linear program with one budget row, for which filling up in the right order is enough.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from policy.oracle import SolverError
from policy.terms import Bools, Floats

_SPARE = 1e-4
"""Worth of an arm's own bound when a slot is left: below any difference that matters."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shares:
    """Probabilities of the arms, and what a dollar of the budget is worth.

    Parameters
    ----------
    share : ndarray, shape (k,)
        Sums to one, or to the sum of the capacities if that is less.
    dual_price : float
        Reward per dollar; 0 where the budget does not bind.
    """

    share: Floats
    dual_price: float


def deploy(
    reward_upper: Floats,
    cost_lower: Floats,
    capacity: Floats,
    *,
    budget_usd: float,
    arms_max: int,
    reserve_usd: float = np.inf,
) -> Bools:
    """Choose the arms of the next stage.

    Solves ``max sum mu d`` subject to ``sum c d <= b``, ``sum d = 1``, ``0 <= d_m <= a_m z_m``,
    ``sum z <= M``, ``z`` binary. If no set keeps the budget the one of least cost is chosen; if
    no set can take every request, as many as it can. Slots that the shares leave empty go to the
    arms with the best bounds, about which more is worth knowing.

    A stage cannot change its arms when they turn out dearer than they seemed, so the set also
    has to hold a second way of taking every request, one that costs ``reserve_usd`` at most.

    Parameters
    ----------
    reward_upper, cost_lower : ndarray, shape (k,)
        Optimistic mean reward, and mean dollars of a request.
    capacity : ndarray, shape (k,)
        Largest share of the requests that each arm may take.
    budget_usd : float
        Mean dollars of a request; may be infinite.
    arms_max : int
    reserve_usd : float
        Mean dollars of a request that the set must be able to come down to.

    Returns
    -------
    ndarray of bool, shape (k,)

    Raises
    ------
    ValueError
        If shapes differ, a number is not finite, or ``arms_max`` is below 1.
    SolverError
        If HiGHS does not reach the optimum.

    References
    ----------
    .. [1] Li, Li, StageRoute, arXiv:2506.17254, eq. 3.

    Examples
    --------
    >>> deploy(np.array([0.9, 0.8, 0.5]), np.array([9.0, 2.0, 1.0]), np.ones(3),
    ...        budget_usd=2.0, arms_max=1)
    array([False,  True, False])
    """
    arms = len(reward_upper)
    _check(reward_upper, cost_lower, capacity)
    if arms_max < 1:
        raise ValueError(f"arms_max must be at least 1, got {arms_max}")
    if arms == 0:
        return np.zeros(0, dtype=np.bool_)
    slots = min(arms_max, arms)
    mass = min(1.0, float(np.sort(capacity)[-slots:].sum()))
    scale = float(cost_lower.mean()) or 1.0
    nothing, one = np.zeros(arms), np.ones(arms)
    tied = np.diag(capacity)
    # Variables: the shares, the deployed arms, the shares of the second way.
    worth = np.concatenate([reward_upper, _SPARE * (reward_upper + 1.0) / slots, nothing])
    cost = np.concatenate([cost_lower / scale, nothing, nothing])
    rows = [
        LinearConstraint(np.concatenate([one, nothing, nothing]), mass, mass),
        LinearConstraint(np.concatenate([nothing, nothing, one]), mass, mass),
        LinearConstraint(np.concatenate([nothing, one, nothing]), -np.inf, slots),
        LinearConstraint(np.hstack([np.eye(arms), -tied, 0.0 * tied]), -np.inf, 0.0),
        LinearConstraint(np.hstack([0.0 * tied, -tied, np.eye(arms)]), -np.inf, 0.0),
    ]
    within = [_at_most(cost, budget_usd * mass / scale)]
    reserve = [_at_most(np.roll(cost, 2 * arms), reserve_usd * mass / scale)]
    for objective, limits in (
        (-worth, [*within, *reserve]),
        (-worth, within),
        (cost - _SPARE * worth, []),
    ):
        chosen = _solve(objective, [*rows, *limits], arms)
        if chosen is not None:
            return chosen
    raise SolverError("no arms to deploy were found")


def _at_most(row: Floats, limit: float) -> LinearConstraint:
    return LinearConstraint(row, -np.inf, limit)


def _solve(objective: Floats, rows: list[LinearConstraint], arms: int) -> Bools | None:
    """Return the deployed arms, or None where the rows cannot all hold."""
    solved = milp(
        objective,
        constraints=rows,
        integrality=np.repeat([0, 1, 0], arms),
        bounds=Bounds(0.0, 1.0),
        # Nodes, not seconds: a busy machine must not choose other arms. Undoing its presolve, HiGHS
        # now and then prints a line on the standard output, in the middle of what a command says.
        options={"mip_rel_gap": 0.0, "node_limit": 100_000, "presolve": False},
    )
    if solved.x is None:
        if solved.status == 2:
            return None
        raise SolverError(str(solved.message))
    return np.asarray(solved.x[arms : 2 * arms] > 0.5, dtype=np.bool_)


def route(reward: Floats, cost_usd: Floats, capacity: Floats, *, budget_usd: float) -> Shares:
    """Return the best probabilities within a mean budget.

    Solves ``max mu p`` subject to ``c p <= b``, ``sum p = 1``, ``0 <= p <= a``. For a price of
    money the best is to fill the arms in the order of ``mu - price c``; that order changes only
    at finitely many prices, so the price at which the budget is met is found exactly, by
    bisection over these, and the two fills beside it are mixed.

    Parameters
    ----------
    reward, cost_usd, capacity : ndarray, shape (k,)
    budget_usd : float
        If even the cheapest fill costs more, that one is returned.

    Examples
    --------
    >>> route(np.array([0.9, 0.5]), np.array([3.0, 1.0]), np.ones(2), budget_usd=2.0)
    Shares(share=array([0.5, 0.5]), dual_price=0.2)
    """
    _check(reward, cost_usd, capacity)
    free = fill(reward, cost_usd, capacity, dual_price=0.0)
    if len(reward) == 0 or float(free @ cost_usd) <= budget_usd:
        return Shares(share=free, dual_price=0.0)
    gain = reward[:, None] - reward
    extra = cost_usd[:, None] - cost_usd
    steps = np.unique((gain / np.where(extra > 0.0, extra, 1.0))[(extra > 0.0) & (gain > 0.0)])
    if not len(steps):
        return Shares(share=free, dual_price=0.0)
    # Fills change at the steps only: one between each two neighbours stands for all.
    between = np.append((steps[:-1] + steps[1:]) / 2.0, 2.0 * steps[-1] + 1.0)
    low, high = -1, len(steps) - 1
    cheapest = fill(reward, cost_usd, capacity, dual_price=float(between[high]))
    if float(cheapest @ cost_usd) > budget_usd:
        return Shares(share=cheapest, dual_price=float(between[high]))
    dear, cheap = free, cheapest
    while high - low > 1:
        middle = (low + high) // 2
        tried = fill(reward, cost_usd, capacity, dual_price=float(between[middle]))
        if float(tried @ cost_usd) > budget_usd:
            low, dear = middle, tried
        else:
            high, cheap = middle, tried
    cost_dear, cost_cheap = float(dear @ cost_usd), float(cheap @ cost_usd)
    part = (budget_usd - cost_cheap) / (cost_dear - cost_cheap)
    return Shares(share=part * dear + (1.0 - part) * cheap, dual_price=float(steps[high]))


def fill(reward: Floats, cost_usd: Floats, capacity: Floats, *, dual_price: float) -> Floats:
    """Return the probabilities that fill the arms up in the order of priced reward, shape (k,)."""
    # Of equals the cheaper one first.
    order = np.lexsort((cost_usd, -(reward - dual_price * cost_usd)))
    before = np.cumsum(capacity[order]) - capacity[order]
    share = np.zeros(len(reward))
    share[order] = np.clip(1.0 - before, 0.0, capacity[order])
    return share


def _check(reward: Floats, cost_usd: Floats, capacity: Floats) -> None:
    if not reward.shape == cost_usd.shape == capacity.shape or reward.ndim != 1:
        raise ValueError(f"shapes differ: {reward.shape}, {cost_usd.shape}, {capacity.shape}")
    if not all(np.isfinite(array).all() for array in (reward, cost_usd, capacity)):
        raise ValueError("rewards, costs and capacities must be finite")
