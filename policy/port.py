"""PORT: nearest-neighbour estimates, and a dual price per arm from a linear program.

Where arms have budgets of their own, each gets a price, the reward that a dollar of its budget is
worth elsewhere; a request goes to the arm with the best estimated reward less priced dollars. A
pooled budget has one price for all arms, which the pacer hands in.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize

from policy.baselines.base import DECIDED, drawn, first_choice
from policy.neighbour_policy import NeighbourPolicy
from policy.oracle import SolverError, arm_budgets_program
from policy.terms import Arm, Bools, Contexts, Floats, Ranking, Settings

PUBLISHED_ALPHA = 1e-4
_OUT = 1e6
"""What an arm whose budget is out loses in score: it comes last, still ranked."""
_PREFIX = 72
"""Bytes of an arm's sums and dual price; its points follow."""


def arm_prices(
    reward: Floats, cost_usd: Floats, budget_usd: Floats, *, published: bool = False
) -> Floats:
    """Return the price of each arm's budget for requests like these.

    Minimises ``sum_i gamma_i B_i + sum_j max(0, max_i(d_ij - gamma_i g_ij))`` over ``gamma >= 0``
    exactly, by the linear program whose dual this is.

    Parameters
    ----------
    reward, cost_usd : ndarray, shape (n, k)
        Estimates for a sample of requests.
    budget_usd : ndarray, shape (k,)
        What the arms may spend on this many requests; infinite where an arm has no budget.
    published : bool
        Instead as the published code does it: ``alpha d`` with alpha = 1e-4, prices boxed in
        [0, 1], no option of sending a request nowhere, L-BFGS-B with numerical gradients from
        1/k. Its prices are returned in the same unit, divided by alpha.

    Returns
    -------
    ndarray, shape (k,)
        Reward per dollar.

    References
    ----------
    .. [1] Wu, Silwal, PORT, arXiv:2509.02718.

    Examples
    --------
    >>> arm_prices(np.array([[0.5, 0.9]] * 4), np.array([[1.0, 2.0]] * 4),
    ...            np.array([np.inf, 4.0])).round(6)
    array([0. , 0.2])
    """
    requests, arms = reward.shape
    limited = np.isfinite(budget_usd)
    if not limited.any() or requests == 0:
        return np.zeros(arms)
    # A budget for everything is as good as none, and the solver wants numbers.
    budget = np.where(limited, budget_usd, cost_usd.sum(axis=0) + 1.0)
    if published:
        return _published_prices(reward, cost_usd, budget)
    return arm_budgets_program(reward, cost_usd, budget)[1]


def _published_prices(reward: Floats, cost_usd: Floats, budget_usd: Floats) -> Floats:
    def dual(prices: Floats) -> float:
        scores = PUBLISHED_ALPHA * reward - prices * cost_usd
        return float(prices @ budget_usd + scores.max(axis=1).sum())

    arms = reward.shape[1]
    found = minimize(dual, np.full(arms, 1.0 / arms), method="L-BFGS-B", bounds=[(0.0, 1.0)] * arms)
    return np.asarray(found.x, dtype=np.float64) / PUBLISHED_ALPHA


class Port(NeighbourPolicy):
    """Best estimated reward less dollars at the pooled price and at the price of the arm's budget.

    Options
    -------
    budget.ARM : float
        Dollars that the arm may spend within the horizon; without one it has no budget.
    horizon : int
        Requests that the budgets of arms are for (10,000).
    variant : str
        ``dual`` (prices by the exact program, solved again every ``resolve`` requests, and at 16,
        32, 64... before, with what is left) or ``published`` (plain means, boxed prices fitted
        once, after the first 2.5 % of the horizon, which go to random arms).
    resolve, sample : int
        Requests between two solutions, and recent contexts each looks at (256 and 256).
    explore_share : float
        Share of the requests given to arms that have had fewer than ``Arm.explore`` (0.1), unless
        the arm's price is such that no reward could be worth it.

    Further options are those of :class:`policy.neighbours.NeighbourPolicy`. What is spent is known
    from outcomes, calls in flight at the mean; the hard caps are the router's.
    """

    name = "port"
    OPTIONS = NeighbourPolicy.OPTIONS | {
        "budget.*",
        "horizon",
        "variant",
        "resolve",
        "sample",
        "explore_share",
    }

    def __init__(self, settings: Settings) -> None:
        self._published = settings.options.get("variant", "dual") == "published"
        if settings.options.get("variant", "dual") not in ("dual", "published"):
            raise ValueError(f"variant must be dual or published: {settings.options['variant']!r}")
        super().__init__(settings)
        if self._published:
            self._shrink = 0.0
        self._horizon = int(self._option("horizon", 10_000))
        self._resolve = int(self._option("resolve", 256))
        self._sample = int(self._option("sample", 256))
        self._explore_share = self._option("explore_share", 0.1)
        if min(self._horizon, self._resolve, self._sample) < 1:
            raise ValueError("horizon, resolve and sample must be at least 1")
        if not 0.0 <= self._explore_share <= 1.0:
            raise ValueError(f"explore_share must be in [0, 1], got {self._explore_share}")
        self._prices: dict[str, float] = {}

    def rank(self, contexts: Contexts, *, dual_price: Floats, eligible: Bools) -> Ranking:
        """Rank by priced reward; an arm whose budget is out comes after all others."""
        reward, cost_usd = self._estimates(contexts)
        prices = np.array([self._prices.get(arm.arm, 0.0) for arm in self._arms])
        priced = (dual_price[:, None] + prices) * cost_usd
        out = cost_usd > np.maximum(self._budgets() - self._spent_usd(), 0.0)
        score = reward - priced - _OUT * out
        # With a price at which even a perfect answer loses, there is nothing to find out.
        open_ = eligible & (priced <= 1.0) & ~out & self._unexplored()
        trying = self._explore_share * open_.any(axis=1)
        if self._published and self._decisions() < self._exploration():
            open_, trying = eligible & ~out, (eligible & ~out).any(axis=1).astype(np.float64)
        return self._exploring(contexts, reward, cost_usd, score, eligible, open_, trying)

    def _exploring(
        self,
        contexts: Contexts,
        reward: Floats,
        cost_usd: Floats,
        score: Floats,
        eligible: Bools,
        open_: Bools,
        trying: Floats,
    ) -> Ranking:
        """Return the ranking in which a share of the requests goes to one of the open arms."""
        if 0 in score.shape:
            return drawn(reward, cost_usd, (score, score), trying, contexts, eligible)
        # The open arms take turns by request, so that which one is tried is drawn evenly.
        rotation = (contexts.seeds >> np.uint64(33)).astype(np.int64)
        number = np.cumsum(open_, axis=1)
        wanted = 1 + rotation % np.maximum(open_.sum(axis=1), 1)
        tried = open_ & (number == wanted[:, None])
        trial = np.where(tried, 2.0 * _OUT, score)
        ranking = drawn(reward, cost_usd, (trial, score), trying, contexts, eligible)
        even = open_ / np.maximum(open_.sum(axis=1, keepdims=True), 1)
        stay = (1.0 - trying)[:, None] * first_choice(score, eligible)
        return Ranking(
            reward=reward,
            cost_usd=cost_usd,
            score=ranking.score,
            propensity=trying[:, None] * even + stay,
            explored=np.asarray((ranking.score >= _OUT).any(axis=1), dtype=np.bool_),
        )

    def decided(self, arm: str, features: Floats, *, explored: bool) -> None:
        """Count a decision; every so many solve for the prices again."""
        super().decided(arm, features, explored=explored)
        decisions = self._decisions()
        # At first often: with no price yet a scarce arm would be spent on whoever comes first.
        doubled = 16 <= decisions < self._resolve and decisions & (decisions - 1) == 0
        due = doubled or decisions % self._resolve == 0
        if self._published:
            due = decisions == self._exploration()
        if due:
            self._solve(max(self._horizon - decisions, self._resolve))

    def dump(self, arm: str) -> bytes:
        """Return the sums, the price and the points of one arm."""
        whole = super().dump(arm)
        price = np.array([self._prices.get(arm, 0.0)], dtype="<f8")
        return whole[:64] + price.tobytes() + whole[64:]

    def load(self, arm: str, state: bytes) -> None:
        """Put the sums, the price and the points of one arm back."""
        if len(state) < _PREFIX:
            raise ValueError(f"an arm's state takes at least {_PREFIX} bytes, got {len(state)}")
        price = float(np.frombuffer(state, "<f8", 1, 64)[0])
        if not 0.0 <= price < np.inf:
            raise ValueError(f"an arm's price must be finite and not negative, got {price}")
        super().load(arm, state[:64] + state[_PREFIX:])
        self._prices[arm] = price

    def _decisions(self) -> int:
        return int(sum(self._own[arm.arm][DECIDED] for arm in self._arms))

    def _exploration(self) -> int:
        return -(-self._horizon // 40)

    def _unexplored(self) -> Bools:
        pulls = np.array([self._own[arm.arm][DECIDED] for arm in self._arms])
        return np.asarray(pulls < [_explore(arm) for arm in self._arms], dtype=np.bool_)

    def _budgets(self) -> Floats:
        return np.array([self._option(f"budget.{arm.arm}", np.inf) for arm in self._arms])

    def _solve(self, requests_left: int) -> None:
        sample = self._recent_contexts(self._sample)
        budgets = self._budgets()
        if sample is None or not np.isfinite(budgets).any():
            return
        reward, cost_usd = self._estimates(sample)
        left = np.maximum(budgets - self._spent_usd(), 0.0) * len(sample) / requests_left
        try:
            prices = arm_prices(reward, cost_usd, left, published=self._published)
        except SolverError:
            # The last prices are still those of a recent sample; the next solution is near.
            return
        for arm, price in zip(self._arms, prices, strict=True):
            self._prices[arm.arm] = float(price)


def _explore(arm: Arm) -> int:
    return arm.explore if arm.price is not None else 0
