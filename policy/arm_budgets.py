"""Hard budgets per arm over recorded data: PORT, what it is compared with, and what beats it.

Everything here has seen ``history`` with every arm's outcome and is asked to answer ``stream``, one
request after the other, from estimates; ``port`` alone goes on learning, from what it chose. A
request is served if the arm's true cost still fits the arm's budget, and lost otherwise: money that
would overspend is never spent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from policy.oracle import outcome, within_arm_budgets, within_budget
from policy.port import arm_prices
from policy.recorded import Growing, Recorded, estimate
from policy.shared_errors import SharedErrors
from policy.terms import Floats, Ints

BATCH = 256
SAMPLE = 500
"""Contexts that a solution for the pooled price looks at."""
RESOLVE, RECENT, ENOUGH = 64, 256, 64
"""PORT solves again every so many requests, and at 16 and 32; it looks at so many recent ones, and
at the history's, too, while it has fewer than enough."""
EXPLORATION = 0.025


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Case:
    """One comparison: true outcomes and estimates of the stream, estimates of the history.

    ``history_reward`` and ``history_cost`` leave each request itself out.
    """

    history: Recorded
    stream: Recorded
    reward: Floats
    cost_usd: Floats
    history_reward: Floats
    history_cost: Floats
    budget_usd: Floats
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What a method reached: sums over the stream, and its reward as a share of two optima.

    ``of_estimated`` is the published measure: the optimum of the program on the same estimates,
    executed on the true outcomes. ``of_true`` is against the program on the true outcomes.
    """

    reward: float
    cost_usd: float
    served: int
    of_estimated: float
    of_true: float


def prepare(history: Recorded, stream: Recorded, budget_usd: Floats, *, seed: int = 0) -> Case:
    """Return the case: estimates are made once and are the same for every method."""
    history_reward, history_cost = estimate(history, history.features, leave_out=True)
    reward, cost_usd = estimate(history, stream.features)
    return Case(
        history=history,
        stream=stream,
        reward=reward,
        cost_usd=cost_usd,
        history_reward=history_reward,
        history_cost=history_cost,
        budget_usd=budget_usd,
        seed=seed,
    )


def evaluate_arm_budgets(case: Case, methods: tuple[str, ...] | None = None) -> dict[str, Served]:
    """Run methods over one case; None runs all of ``METHODS``.

    Returns
    -------
    dict
        By method. ``cheapest`` and ``pooled`` are given the whole budget unsplit, so they may pass
        the optimum of the split one.
    """
    stream = case.stream
    best = within_arm_budgets(stream.reward, stream.cost_usd, case.budget_usd)
    planned = within_arm_budgets(case.reward, case.cost_usd, case.budget_usd).choice
    guided = outcome(stream.reward, stream.cost_usd, _executed(case, planned))[0].sum()
    results = {}
    for name in methods if methods is not None else tuple(METHODS):
        choice = METHODS[name](case)
        earned, spent = outcome(stream.reward, stream.cost_usd, choice)
        results[name] = Served(
            reward=float(earned.sum()),
            cost_usd=float(spent.sum()),
            served=int((choice >= 0).sum()),
            of_estimated=float(earned.sum() / max(guided, 1e-12)),
            of_true=float(earned.sum() / max(best.bound, 1e-12)),
        )
    return results


def _executed(case: Case, wanted: Ints) -> Ints:
    """Return who is served when a plan made on estimates meets the true costs, in order."""
    till = _Till(case, case.budget_usd)
    for row, arm in enumerate(wanted):
        till.serve(row, int(arm))
    return till.choice


class _Till:
    """What is left of each budget, and who was served."""

    def __init__(self, case: Case, budget_usd: Floats) -> None:
        self.left = budget_usd.astype(np.float64).copy()
        self.choice: Ints = np.full(len(case.stream), -1, dtype=np.int64)
        self._cost = case.stream.cost_usd

    def serve(self, row: int, arm: int, *, purse: int | None = None) -> None:
        purse = arm if purse is None else purse
        if arm >= 0 and self._cost[row, arm] <= self.left[purse]:
            self.left[purse] -= self._cost[row, arm]
            self.choice[row] = arm


def _published(case: Case, *, boxed: bool) -> Ints:
    till = _Till(case, case.budget_usd)
    requests, arms = case.reward.shape
    first = int(np.ceil(EXPLORATION * requests))
    prices = arm_prices(
        case.reward[:first], case.cost_usd[:first], EXPLORATION * case.budget_usd, published=boxed
    )
    # One outcome more than arms: the published exploration also sends requests nowhere.
    random = np.random.default_rng(case.seed).integers(-1, arms, first)
    scores = case.reward - prices * case.cost_usd
    for row in range(requests):
        till.serve(row, int(random[row]) if row < first else int(np.argmax(scores[row])))
    return till.choice


def _batch_split(case: Case) -> Ints:
    till = _Till(case, case.budget_usd)
    left = case.budget_usd.copy()
    for start in range(0, len(case.stream), BATCH):
        rows = slice(start, start + BATCH)
        plan = within_arm_budgets(case.reward[rows], case.cost_usd[rows], left)
        left = left - np.array(
            [case.cost_usd[rows][plan.choice == arm, arm].sum() for arm in range(len(left))]
        )
        for offset, arm in enumerate(plan.choice):
            till.serve(start + offset, int(arm))
    return till.choice


def _port(case: Case) -> Ints:
    """Prices solved again with what is left; second choice when the first is out.

    What a request brought is a neighbour for those after it: a history of other requests, such as
    another task's, gives way to what is like them. What it was off by corrects the estimates of
    all arms for requests like it (:mod:`policy.shared_errors`).
    """
    till = _Till(case, case.budget_usd)
    requests = len(case.stream)
    rng = np.random.default_rng(case.seed)
    known = Growing(case.history, case.stream.features)
    errors = SharedErrors(case.stream.features)
    prices = np.zeros(len(till.left))
    for row in range(requests):
        if row % RESOLVE == 0 or row in (16, 32):
            recent = np.arange(max(row - RECENT, 0), row)
            reward, cost_usd = known.estimate(recent, seen=row)
            reward, cost_usd = errors.correct(recent, reward, cost_usd, seen=row)
            if len(recent) < ENOUGH:
                past = rng.permutation(len(case.history_reward))[: RECENT - len(recent)]
                reward = np.vstack([reward, case.history_reward[past]])
                cost_usd = np.vstack([cost_usd, case.history_cost[past]])
            prices = arm_prices(reward, cost_usd, till.left * len(reward) / (requests - row))
        plain, plain_usd = known.estimate(np.array([row]), seen=row)
        reward, cost_usd = errors.correct(np.array([row]), plain, plain_usd, seen=row)
        score = np.where(cost_usd[0] <= till.left, reward[0] - prices * cost_usd[0], -np.inf)
        # Below zero the money is worth more to a later request.
        arm = int(np.argmax(score)) if score.max() >= 0.0 else -1
        till.serve(row, arm)
        if till.choice[row] >= 0:
            earned = float(case.stream.reward[row, arm])
            paid = float(case.stream.cost_usd[row, arm])
            known.learn(row, arm, reward=earned, cost_usd=paid)
            expected, foreseen = float(plain[0, arm]), float(plain_usd[0, arm])
            errors.learn(row, reward=(expected, earned), cost_usd=(foreseen, paid))
    return till.choice


def _sample(case: Case, row: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Return estimates of recent requests, filled up with the history's."""
    recent = slice(max(row - SAMPLE, 0), row)
    missing = min(SAMPLE - (recent.stop - recent.start), len(case.history_reward))
    past = rng.permutation(len(case.history_reward))[:missing]
    return (
        np.vstack([case.reward[recent], case.history_reward[past]]),
        np.vstack([case.cost_usd[recent], case.history_cost[past]]),
    )


def _greedy_performance(case: Case) -> Ints:
    return _executed(case, np.argmax(case.reward, axis=1))


def _greedy_cost(case: Case) -> Ints:
    left = case.budget_usd.copy()
    wanted = np.zeros(len(case.stream), dtype=np.int64)
    for row in range(len(wanted)):
        wanted[row] = np.argmax(left)
        left[wanted[row]] -= case.cost_usd[row, wanted[row]]
    return _executed(case, wanted)


def _random(case: Case) -> Ints:
    rng = np.random.default_rng(case.seed)
    return _executed(case, rng.integers(0, case.reward.shape[1], len(case.stream)))


def _cheapest(case: Case) -> Ints:
    till = _Till(case, np.array([case.budget_usd.sum()]))
    arm = int(np.argmin(case.history_cost.mean(axis=0)))
    for row in range(len(case.stream)):
        till.serve(row, arm, purse=0)
    return till.choice


def _pooled(case: Case) -> Ints:
    till = _Till(case, np.array([case.budget_usd.sum()]))
    requests = len(case.stream)
    rng = np.random.default_rng(case.seed)
    price = 0.0
    for row in range(requests):
        if row % BATCH == 0:
            reward, cost_usd = _sample(case, row, rng)
            budget = float(till.left[0]) * len(reward) / (requests - row)
            price = float(within_budget(reward, cost_usd, budget_usd=budget).dual_price[0])
        score = case.reward[row] - price * case.cost_usd[row]
        till.serve(row, int(np.argmax(score)) if score.max() >= 0.0 else -1, purse=0)
    return till.choice


METHODS: dict[str, Callable[[Case], Ints]] = {
    "port": _port,
    "port-published": lambda case: _published(case, boxed=True),
    "port-exact-dual": lambda case: _published(case, boxed=False),
    "batch-split": _batch_split,
    "greedy-performance": _greedy_performance,
    "greedy-cost": _greedy_cost,
    "random": _random,
    "cheapest": _cheapest,
    "pooled": _pooled,
}
"""Methods by name; ``port`` is what :class:`policy.port.Port` does, after full information, and
corrects its estimates by the arms' shared errors, which that one does not."""
