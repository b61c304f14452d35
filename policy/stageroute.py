"""StageRoute: a deployed set per stage, and shares within it that keep a mean budget.

At the start of every stage a mixed-integer program picks at most ``arms_max`` arms from optimistic
means; until the next stage only these are routed to. Without an inner policy every request draws
its arm with the probabilities of a small linear program, which learns from each outcome. With an
inner policy that one ranks the deployed arms for each request, and the pacer prices it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np

from policy.baselines.base import (
    DECIDED,
    MeansPolicy,
    first_choice,
)
from policy.chance import uniforms
from policy.deploy import deploy, fill, route
from policy.oracle import SolverError
from policy.stage_bounds import stage_bounds
from policy.terms import (
    Arm,
    Bools,
    Contexts,
    Floats,
    Learning,
    Policy,
    Ranking,
    Settings,
)

AIM = 0.99
"""Share of the budget that is aimed at; the rest absorbs surprises."""
HORIZON = 200.0
"""Requests over which a balance is made good."""
HELD = 2.0 * math.sqrt(HORIZON)
"""Requests' budgets kept back: the costs of the last ones cannot be made good any more."""
RESERVE = 0.5
"""Share of the budget that a stage's arms must be able to come down to."""
_BARRED = 1e6
_FIXED = 88
"""Bytes of an arm's sums, deployment and stage counters; the inner policy's state follows."""
_ON, _PULLS, _STAGE = range(3)


class StageRoute(MeansPolicy):
    """Stages, a deployed set, and shares or an inner policy within it.

    Options
    -------
    ceiling : float
        Dollars a request on average; without it the pacer's dual price alone decides.
    horizon, stages : int
        Requests that the stages divide evenly (10,000, and its cube root: 22), which lets regret
        grow as slowly as it can; a stage is as long afterwards.
    arms_max : int
        Most arms deployed at a time (6).
    capacity : float
        Largest share of the requests for one arm (0.4).
    radius : float
        gamma of the confidence radius ``sqrt(gamma v / n) + gamma / n`` (0.1). The published
        one grows with the logarithm of the horizon and is a hundred times as large. An arm that
        has had fewer than ``Arm.explore`` decisions is taken for the best possible one, unless
        there is an inner policy, which explores by itself.
    inner : str
        Name of a policy that ranks the deployed arms by context; its options are ``inner.NAME``.

    References
    ----------
    .. [1] Li, Li, StageRoute, arXiv:2506.17254.
    """

    name = "stageroute"
    spans_arms: Literal[True] = True
    OPTIONS = MeansPolicy.OPTIONS | {
        "ceiling", "horizon", "stages", "arms_max", "capacity", "radius", "inner", "inner.*"
    }  # fmt: skip

    def __init__(
        self, settings: Settings, make_inner: Callable[[Settings], Policy] | None = None
    ) -> None:
        super().__init__(settings)
        self._ceiling = self._option("ceiling", float("inf"))
        horizon = self._option("horizon", 10_000)
        stages = int(self._option("stages", math.ceil(max(horizon, 1.0) ** (1 / 3))))
        self._length = int(np.ceil(horizon / max(stages, 1)))
        self._slots = int(self._option("arms_max", 6))
        self._capacity = self._option("capacity", 0.4)
        self._radius = self._option("radius", 0.1)
        if min(stages, self._length, self._slots) < 1 or self._ceiling <= 0.0:
            raise ValueError("horizon, stages, arms_max must be at least 1, ceiling above 0")
        if not 0.0 < self._capacity <= 1.0 or self._radius < 0.0:
            raise ValueError("capacity must be in (0, 1] and radius not negative")
        self._stage: dict[str, Floats] = {}
        self._inner: Policy | None = None
        inner = settings.options.get("inner")
        if inner is not None:
            if make_inner is None:
                raise ValueError(f"there is nothing that makes the inner policy {inner!r}")
            self._inner = make_inner(_inner_settings(settings, str(inner)))

    def set_arms(self, arms: tuple[Arm, ...]) -> None:
        """Take the arms; new ones wait for the next stage unless nothing is deployed."""
        super().set_arms(arms)
        for arm in arms:
            self._stage.setdefault(arm.arm, np.zeros(3))
        if self._inner is not None:
            self._inner.set_arms(arms)
        if not (self._deployed() & self._available()).any():
            self._begin_stage()

    def rank(self, contexts: Contexts, *, dual_price: Floats, eligible: Bools) -> Ranking:
        """Rank the deployed arms; the others come last and are worth nothing."""
        deployed = self._deployed() & self._available()
        if self._inner is None:
            return self._shared(contexts, dual_price, eligible, deployed)
        open_ = eligible & deployed & ~self._full()
        ranking = self._inner.rank(contexts, dual_price=dual_price, eligible=open_)
        score = np.where(open_, ranking.score, ranking.score - _BARRED)
        return Ranking(
            reward=np.where(deployed, ranking.reward, 0.0),
            cost_usd=ranking.cost_usd,
            score=_bar(score, deployed, eligible),
            propensity=ranking.propensity,
            explored=ranking.explored,
        )

    def decided(self, arm: str, features: Floats, *, explored: bool) -> None:
        """Count a decision; at the end of a stage choose the arms of the next."""
        super().decided(arm, features, explored=explored)
        self._stage[arm][_PULLS] += 1.0
        if self._inner is not None:
            self._inner.decided(arm, features, explored=explored)
        if int(sum(self._own[a.arm][DECIDED] for a in self._arms)) % self._length == 0:
            self._begin_stage()

    def learn(self, learning: Learning) -> None:
        """Add one outcome to the sums, and teach the inner policy."""
        super().learn(learning)
        if self._inner is not None:
            self._inner.learn(learning)

    def dump(self, arm: str) -> bytes:
        """Return sums and deployment of one arm, then the inner policy's state of it."""
        inner = b"" if self._inner is None else self._inner.dump(arm)
        return super().dump(arm) + self._stage[arm].astype("<f8").tobytes() + inner

    def load(self, arm: str, state: bytes) -> None:
        """Put sums, deployment and the inner policy's state of one arm back."""
        stage = np.frombuffer(state[64:_FIXED], dtype="<f8").astype(np.float64)
        if len(stage) != 3 or not np.isfinite(stage).all():
            raise ValueError(f"an arm's stage takes three finite numbers, got {len(stage)}")
        if self._inner is None and len(state) != _FIXED:
            raise ValueError(f"an arm's state takes {_FIXED} bytes, got {len(state)}")
        super().load(arm, state[:64])
        self._stage[arm] = stage
        if self._inner is not None:
            self._inner.load(arm, state[_FIXED:])

    def merge(self, arm: str, source: int, state: bytes) -> None:
        """Count another partition's sums too; its stages are its own."""
        super().merge(arm, source, state[:64])
        if self._inner is not None:
            self._inner.merge(arm, source, state[_FIXED:])

    def bounds(self) -> tuple[Floats, Floats]:
        """Return optimistic reward and expected dollars of each arm, shape (k,) each."""
        # An inner policy explores by itself; an arm too dear for it would keep its slot for ever.
        return stage_bounds(
            self._totals(), self._arms, radius=self._radius, tries=self._inner is None
        )

    def _shared(
        self, contexts: Contexts, dual_price: Floats, eligible: Bools, deployed: Bools
    ) -> Ranking:
        """Rank by a draw from the shares, then by priced reward."""
        reward, cost_usd = self._estimates(contexts)
        upper, mean_cost = self.bounds()
        budget = self._budget_now()
        draw = uniforms(contexts.seeds, stream=0)
        score = np.broadcast_to(upper, reward.shape) - dual_price[:, None] * mean_cost
        score = np.where(deployed, score, score - _BARRED)
        propensity = np.zeros(reward.shape)
        solved: dict[tuple[bytes, float], Floats] = {}
        for row, open_ in enumerate(eligible & deployed):
            if not open_.any():
                propensity[row] = first_choice(score[row : row + 1], eligible[row : row + 1])[0]
                continue
            price = float(dual_price[row]) if np.isinf(budget) else 0.0
            share = solved.get((open_.tobytes(), price))
            if share is None:
                share = self._shares(upper, mean_cost, open_, budget, price)
                solved[open_.tobytes(), price] = share
            propensity[row] = share
            columns = np.flatnonzero(share)
            taken = int(np.searchsorted(np.cumsum(share[columns]), draw[row], side="right"))
            score[row, columns[min(taken, len(columns) - 1)]] = 2.0
        return Ranking(
            reward=np.where(deployed, reward, 0.0),
            cost_usd=cost_usd,
            score=_bar(score, deployed, eligible),
            propensity=propensity,
            explored=(propensity.max(axis=1, initial=0.0) < 1.0) & eligible.any(axis=1),
        )

    def _shares(
        self, upper: Floats, cost_usd: Floats, open_: Bools, budget_usd: float, price: float
    ) -> Floats:
        """Return the probabilities of the open arms, shape (k,)."""
        part = (upper[open_], cost_usd[open_], np.full(int(open_.sum()), self._capacity))
        if np.isfinite(budget_usd):
            found = route(*part, budget_usd=budget_usd).share
        else:
            found = fill(*part, dual_price=price)
        share = np.zeros(len(open_))
        # Fewer arms than the capacities ask for must take every request all the same.
        share[open_] = found / found.sum()
        return share

    def _budget_now(self) -> float:
        """Return dollars for the next request: what is aimed at, and a part of the balance."""
        if np.isinf(self._ceiling) or not self._arms:
            return float("inf")
        seen = float(sum(self._own[arm.arm][DECIDED] for arm in self._arms))
        balance = self._ceiling * (AIM * seen - HELD) - float(self._spent_usd().sum())
        return max(AIM * self._ceiling + balance / HORIZON, 0.0)

    def _deployed(self) -> Bools:
        return np.array([self._stage[arm.arm][_ON] > 0.0 for arm in self._arms], dtype=np.bool_)

    def _available(self) -> Bools:
        usable = [arm.deployed and arm.price is not None for arm in self._arms]
        return np.array(usable, dtype=np.bool_)

    def _full(self) -> Bools:
        """Return which arms have had their capacity in this stage so far."""
        pulls = np.array([self._stage[arm.arm][_PULLS] for arm in self._arms])
        # A twentieth of the stage in advance, or its first requests could go nowhere.
        seen = pulls.sum() + self._length / 20.0
        full = pulls >= self._capacity * seen
        open_ = ~full & self._deployed() & self._available()
        return full if open_.any() else np.zeros(len(full), dtype=np.bool_)

    def _begin_stage(self) -> None:
        """Choose the arms of the next stage; where the solver fails the present ones stay."""
        columns = np.flatnonzero(self._available())
        if not len(columns):
            return
        upper, cost = self.bounds()
        capacity = np.full(len(columns), self._capacity)
        try:
            chosen = deploy(
                upper[columns],
                cost[columns],
                capacity,
                budget_usd=AIM * self._ceiling,
                arms_max=self._slots,
                reserve_usd=RESERVE * self._ceiling,
            )
        except SolverError:
            return
        on = {self._arms[column].arm for column in columns[chosen]}
        for arm in self._arms:
            self._stage[arm.arm][:] = (arm.arm in on, 0.0, self._stage[arm.arm][_STAGE] + 1.0)


def _inner_settings(settings: Settings, inner: str) -> Settings:
    options = {
        name.removeprefix("inner."): value
        for name, value in settings.options.items()
        if name.startswith("inner.")
    }
    return Settings(
        policy=inner,
        dimensions=settings.dimensions,
        seed=settings.seed,
        options=options,
        features=settings.features,
    )


def _bar(score: Floats, deployed: Bools, eligible: Bools) -> Floats:
    """Return the scores with the arms barred that are not deployed, where one that is may be used.

    A request that allows none of the deployed arms is not refused for it.
    """
    served = (eligible & deployed).any(axis=1, keepdims=True)
    barred: Floats = np.where(served & ~deployed, -np.inf, score)
    return barred
