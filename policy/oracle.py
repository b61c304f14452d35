"""What could have been reached by one who knew every reward and cost: unlimited and within budgets.

Rewards and costs are matrices of shape (n, k) with every arm's outcome for every request. A choice
of -1 sends a request nowhere: it earns nothing and costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.optimize import linprog

from policy.terms import Floats, Ints, PolicyError


class SolverError(PolicyError):
    """A program that has a solution was not solved."""

    def __init__(self, message: str) -> None:
        super().__init__(f"solver: {message}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Assignment:
    """Who answers what, and how good it could be.

    Parameters
    ----------
    choice : ndarray of int64, shape (n,)
        Column of the arm, -1 for none; keeps the budgets exactly.
    bound : float
        Sum of rewards that no assignment within the budgets exceeds (the linear program's value).
    dual_price : ndarray
        Reward per dollar: one number for a pooled budget, one per arm for budgets of arms.
    """

    choice: Ints
    bound: float
    dual_price: Floats


def unlimited(reward: Floats, cost_usd: Floats) -> Assignment:
    """Take the best arm for every request, of equal ones the cheapest.

    Examples
    --------
    >>> unlimited(np.array([[0.5, 1.0], [1.0, 1.0]]), np.array([[1.0, 9.0], [1.0, 9.0]])).choice
    array([1, 0])
    """
    reward, cost_usd = _checked(reward, cost_usd)
    best = reward.max(axis=1, keepdims=True)
    choice = np.argmin(np.where(reward == best, cost_usd, np.inf), axis=1)
    return Assignment(choice=choice, bound=float(best.sum()), dual_price=np.zeros(1))


def within_request_ceiling(reward: Floats, cost_usd: Floats, *, ceiling_usd: float) -> Assignment:
    """Take the best arm for every request among those that cost at most the ceiling each time."""
    reward, cost_usd = _checked(reward, cost_usd)
    value = np.where(cost_usd <= ceiling_usd, reward, -np.inf)
    best = value.max(axis=1)
    dearest_last = np.where(value == best[:, None], cost_usd, np.inf)
    choice = np.where(np.isfinite(best), np.argmin(dearest_last, axis=1), -1)
    bound = float(np.where(np.isfinite(best), best, 0.0).sum())
    return Assignment(choice=choice, bound=bound, dual_price=np.zeros(1))


def within_budget(reward: Floats, cost_usd: Floats, *, budget_usd: float) -> Assignment:
    """Spend one pooled budget best.

    Each request climbs the upper hull of its arms in the plane of cost and reward; the steps of
    all requests are taken in the order of reward per dollar. That solves the linear program; the
    one request that would be split stays below its step, and what is left of the budget goes to
    later steps that fit.

    Parameters
    ----------
    reward, cost_usd : ndarray, shape (n, k)
    budget_usd : float

    Returns
    -------
    Assignment
        The choice's reward is below ``bound`` by at most one request's.

    References
    ----------
    .. [1] Sinha, Zoltners, The multiple-choice knapsack problem, Operations Research 27, 1979.

    Examples
    --------
    >>> best = within_budget(np.array([[0.5, 0.9], [0.5, 0.6]]), np.array([[1.0, 3.0]] * 2),
    ...                      budget_usd=3.0)
    >>> best.choice, round(best.bound, 3), best.dual_price
    (array([0, 0]), 1.2, array([0.2]))
    """
    reward, cost_usd = _checked(reward, cost_usd)
    row, arm, gain, step = _hull_steps(reward, cost_usd)
    with np.errstate(divide="ignore"):
        slope = np.where(step > 0.0, gain / np.where(step > 0.0, step, 1.0), np.inf)
    order = np.lexsort((np.arange(len(row)), -slope))
    choice = np.full(len(reward), -1, dtype=np.int64)
    left, bound, price = float(budget_usd), 0.0, 0.0
    waiting = np.zeros(len(reward), dtype=np.bool_)
    full = False
    for index in order:
        request = int(row[index])
        if step[index] <= left and not waiting[request]:
            choice[request] = arm[index]
            left -= float(step[index])
            bound += 0.0 if full else float(gain[index])
            continue
        # The steps of one request are a chain: what comes after a step not taken is out of reach.
        waiting[request] = True
        if not full:
            full, price = True, float(slope[index])
            bound += price * left
    return Assignment(choice=choice, bound=bound, dual_price=np.array([price]))


def within_arm_budgets(reward: Floats, cost_usd: Floats, budget_usd: Floats) -> Assignment:
    """Spend a budget per arm best: the linear program by HiGHS, then rounded.

    Parameters
    ----------
    reward, cost_usd : ndarray, shape (n, k)
    budget_usd : ndarray, shape (k,)

    Returns
    -------
    Assignment
        At most k requests are split by the program; each gets the best arm that still fits.

    Raises
    ------
    SolverError
        If HiGHS does not reach the optimum.
    """
    reward, cost_usd = _checked(reward, cost_usd)
    share, price, bound = arm_budgets_program(reward, cost_usd, budget_usd)
    choice = np.where(share.max(axis=1) > 1.0 - 1e-7, np.argmax(share, axis=1), -1)
    left = budget_usd.astype(np.float64).copy()
    taken = np.flatnonzero(choice >= 0)
    np.subtract.at(left, choice[taken], cost_usd[taken, choice[taken]])
    # The solver meets a budget within its tolerance only; integers must meet it exactly.
    for request in taken[np.argsort(reward[taken, choice[taken]], kind="stable")]:
        arm = choice[request]
        if left[arm] < 0.0:
            left[arm] += cost_usd[request, arm]
            choice[request] = -1
    for request in np.flatnonzero(choice < 0):
        fits = np.where(cost_usd[request] <= left, reward[request], -np.inf)
        arm = int(np.argmax(fits))
        if fits[arm] > 0.0:
            choice[request] = arm
            left[arm] -= cost_usd[request, arm]
    return Assignment(choice=choice, bound=bound, dual_price=price)


def arm_budgets_program(
    reward: Floats, cost_usd: Floats, budget_usd: Floats
) -> tuple[Floats, Floats, float]:
    """Solve ``max sum d x, sum_j g x <= B per arm, sum_i x <= 1 per request, x >= 0``.

    Returns
    -------
    share : ndarray, shape (n, k)
    dual_price : ndarray, shape (k,)
        Reward per dollar of each arm's budget.
    bound : float
        The optimum.

    Raises
    ------
    SolverError
        If HiGHS does not reach the optimum.
    """
    requests, arms = reward.shape
    if requests == 0 or arms == 0:
        return np.zeros(reward.shape), np.zeros(arms), 0.0
    # Budgets as shares and costs in the same unit: dollars of 1e-6 lie below the tolerances.
    scale = float(cost_usd.mean()) or 1.0
    column = np.arange(requests * arms)
    one_each = sparse.csr_matrix(
        (np.ones(requests * arms), (column // arms, column)), shape=(requests, requests * arms)
    )
    spend = sparse.csr_matrix(
        ((cost_usd / scale).ravel(), (column % arms, column)), shape=(arms, requests * arms)
    )
    solved = linprog(
        -reward.ravel(),
        A_ub=sparse.vstack([one_each, spend]),
        b_ub=np.concatenate([np.ones(requests), np.maximum(budget_usd, 0.0) / scale]),
        bounds=(0.0, None),
        method="highs-ds",
    )
    if solved.status != 0:
        raise SolverError(str(solved.message))
    price = np.maximum(-solved.ineqlin.marginals[requests:], 0.0) / scale
    return solved.x.reshape(reward.shape), price, float(-solved.fun)


def outcome(reward: Floats, cost_usd: Floats, choice: Ints) -> tuple[Floats, Floats]:
    """Return reward and cost of each request under a choice, shape (n,) each."""
    row = np.arange(len(choice))
    sent = choice >= 0
    column = np.where(sent, choice, 0)
    return np.where(sent, reward[row, column], 0.0), np.where(sent, cost_usd[row, column], 0.0)


def _checked(reward: Floats, cost_usd: Floats) -> tuple[Floats, Floats]:
    reward, cost_usd = np.asarray(reward, np.float64), np.asarray(cost_usd, np.float64)
    if reward.ndim != 2 or reward.shape != cost_usd.shape or reward.shape[1] == 0:
        raise ValueError(f"reward {reward.shape} and cost {cost_usd.shape} must be equal (n, k)")
    if not (np.isfinite(reward).all() and np.isfinite(cost_usd).all() and (cost_usd >= 0).all()):
        raise ValueError("rewards must be finite and costs finite and not negative")
    return reward, cost_usd


def _hull_steps(reward: Floats, cost_usd: Floats) -> tuple[Ints, Ints, Floats, Floats]:
    """Return request, arm, gained reward and extra cost of every step up from taking no arm."""
    row = np.arange(len(reward))
    value_now, cost_now = np.zeros(len(reward)), np.zeros(len(reward))
    steps: list[tuple[Ints, Ints, Floats, Floats]] = []
    for _ in range(reward.shape[1]):
        gain = reward - value_now[:, None]
        step = cost_usd - cost_now[:, None]
        better = (gain > 0.0) & (step >= 0.0)
        free = step == 0.0
        slope = np.where(better & ~free, gain / np.where(free, 1.0, step), -np.inf)
        slope = np.where(better & free, np.inf, slope)
        steepest = slope.max(axis=1)
        # Of arms on one line the farthest, so that steps shrink no chain into pieces.
        arm = np.argmax(np.where(slope == steepest[:, None], gain, -np.inf), axis=1)
        moving = np.flatnonzero(steepest > -np.inf)
        if not len(moving):
            break
        taken = arm[moving]
        steps.append((moving, taken, gain[moving, taken], step[moving, taken]))
        value_now, cost_now = value_now.copy(), cost_now.copy()
        value_now[moving] = reward[row[moving], taken]
        cost_now[moving] = cost_usd[row[moving], taken]
    if not steps:
        nothing = np.zeros(0, dtype=np.int64)
        return nothing, nothing, np.zeros(0), np.zeros(0)
    joined = [np.concatenate(parts) for parts in zip(*steps, strict=True)]
    return joined[0], joined[1], joined[2], joined[3]
