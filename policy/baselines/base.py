"""What the simple policies share: means per arm, and how a choice becomes a ranking."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np

from policy.chance import uniforms
from policy.money import NANO_PER_USD, Price
from policy.terms import (
    Arm,
    Bools,
    Contexts,
    Floats,
    Learning,
    Ranking,
    Settings,
    UnknownArmError,
)

DECIDED, REWARDS, REWARD_SUM, OUTPUTS, OUTPUT_SUM, COSTS, UNIT_SUM, COST_SUM = range(8)
"""Columns of an arm's statistics; all are sums, so partitions add them."""

PRIOR_REWARD = 0.5
PRIOR_OUTPUT_TOKENS = 256
"""What is expected of an arm of which nothing is known; worth one outcome."""


def units(price: Price, cost_nanousd: float) -> float:
    """Return a cost in million tokens at the arm's own price: it survives a change of price."""
    return cost_nanousd * 1_000.0 / (price.input + price.output)


class MeansPolicy(ABC):
    """A policy over the mean reward, output length and cost of every arm.

    ``rank`` is left to the policies.

    Raises
    ------
    ValueError
        If the settings name an option that the policy does not have, or one out of its range.
    """

    name: str
    OPTIONS: ClassVar[frozenset[str]] = frozenset()
    """Names of the options; ``budget.*`` stands for one of each arm."""

    def __init__(self, settings: Settings) -> None:
        for option in settings.options:
            stem, dot, _ = option.partition(".")
            if (f"{stem}.*" if dot else option) not in self.OPTIONS:
                known = ", ".join(sorted(self.OPTIONS)) or "none"
                raise ValueError(f"{self.name} has no option {option!r}; there are {known}")
        self._settings = settings
        self._arms: tuple[Arm, ...] = ()
        self._own: dict[str, Floats] = {}
        self._others: dict[tuple[str, int], Floats] = {}

    @abstractmethod
    def rank(self, contexts: Contexts, *, dual_price: Floats, eligible: Bools) -> Ranking:
        """Rank the arms for each request; the state does not change."""

    def set_arms(self, arms: tuple[Arm, ...]) -> None:
        """Take the arms of the catalog, in column order."""
        self._arms = arms
        for arm in arms:
            self._own.setdefault(arm.arm, np.zeros(8))

    def decided(self, arm: str, features: Floats, *, explored: bool) -> None:
        """Count a decision."""
        self._statistics(arm)[DECIDED] += 1.0

    def learn(self, learning: Learning) -> None:
        """Add one outcome to the sums of its arm."""
        sums = self._statistics(learning.arm)
        if learning.reward is not None:
            sums[REWARDS] += 1.0
            sums[REWARD_SUM] += learning.reward
        if learning.output_tokens is not None:
            sums[OUTPUTS] += 1.0
            sums[OUTPUT_SUM] += learning.output_tokens
        price = learning.price or self._price(learning.arm)
        if learning.cost_nanousd is not None and price is not None:
            sums[COSTS] += 1.0
            sums[UNIT_SUM] += units(price, learning.cost_nanousd)
            sums[COST_SUM] += learning.cost_nanousd

    def dump(self, arm: str) -> bytes:
        """Return the sums of one arm as eight float64."""
        return self._statistics(arm).astype("<f8").tobytes()

    def load(self, arm: str, state: bytes) -> None:
        """Put the sums of one arm back."""
        self._own[arm] = _sums(state)

    def merge(self, arm: str, source: int, state: bytes) -> None:
        """Count the sums of another partition too."""
        self._others[arm, source] = _sums(state)

    def _statistics(self, arm: str) -> Floats:
        if arm not in self._own:
            raise UnknownArmError(arm)
        return self._own[arm]

    def _price(self, name: str) -> Price | None:
        return next((arm.price for arm in self._arms if arm.arm == name), None)

    def _totals(self) -> Floats:
        """Return the sums over all partitions, shape (k, 8)."""
        totals = np.array([self._own[arm.arm] for arm in self._arms]).reshape(-1, 8)
        column = {arm.arm: index for index, arm in enumerate(self._arms)}
        for (arm, _), sums in sorted(self._others.items(), key=lambda item: item[0]):
            if arm in column:
                totals[column[arm]] += sums
        return totals

    def _spent_usd(self) -> Floats:
        """Return what each arm has cost here, calls in flight taken at its mean, shape (k,)."""
        sums = np.array([self._own[arm.arm] for arm in self._arms]).reshape(-1, 8)
        mean = sums[:, COST_SUM] / np.maximum(sums[:, COSTS], 1.0)
        in_flight = np.maximum(sums[:, DECIDED] - sums[:, COSTS], 0.0)
        spent = (sums[:, COST_SUM] + in_flight * mean) / NANO_PER_USD
        return np.asarray(spent, dtype=np.float64)

    def _mean_reward(self) -> Floats:
        """Return the expected reward of every arm, shape (k,)."""
        totals = self._totals()
        prior = [PRIOR_REWARD if a.prior_reward is None else a.prior_reward for a in self._arms]
        mean = (totals[:, REWARD_SUM] + prior) / (totals[:, REWARDS] + 1.0)
        return np.asarray(mean, dtype=np.float64)

    def _mean_output_tokens(self) -> Floats:
        """Return the expected output tokens of every arm, shape (k,)."""
        totals = self._totals()
        prior = [a.prior_output_tokens or PRIOR_OUTPUT_TOKENS for a in self._arms]
        mean = (totals[:, OUTPUT_SUM] + prior) / (totals[:, OUTPUTS] + 1.0)
        return np.asarray(mean, dtype=np.float64)

    def _estimates(self, contexts: Contexts) -> tuple[Floats, Floats]:
        """Return expected reward and dollars without regard to the context, each (n, k)."""
        shape = (len(contexts), len(self._arms))
        reward = np.clip(np.broadcast_to(self._mean_reward(), shape), 0.0, 1.0)
        totals = self._totals()
        unit_mean = totals[:, UNIT_SUM] / np.maximum(totals[:, COSTS], 1.0)
        by_cost = (totals[:, COSTS] > 0) & (totals[:, OUTPUTS] == 0)
        tokens = np.broadcast_to(self._mean_output_tokens(), shape)
        return reward, self._dollars(contexts, tokens, np.where(by_cost, unit_mean, np.nan))

    def _mean_cost_usd(self, cost_usd: Floats) -> Floats:
        """Return the mean dollars of a call of every arm, shape (k,).

        ``cost_usd`` is what this batch is expected to cost; it counts once, and once for each
        outcome of which only the tokens are known.
        """
        totals = self._totals()
        expected = cost_usd.mean(axis=0) if len(cost_usd) else np.zeros(len(self._arms))
        price = np.array(
            [float(a.price.input + a.price.output) if a.price else 0.0 for a in self._arms]
        )
        true = totals[:, UNIT_SUM] * price / (1_000.0 * NANO_PER_USD)
        unpriced = np.maximum(totals[:, OUTPUTS] - totals[:, COSTS], 0.0) + 1.0
        mean = (true + unpriced * expected) / (totals[:, COSTS] + unpriced)
        return np.asarray(mean, dtype=np.float64)

    def _dollars(self, contexts: Contexts, output_tokens: Floats, unit_mean: Floats) -> Floats:
        """Return expected dollars (n, k): from units where these are given, else from tokens."""
        price_in = np.array([float(a.price.input) if a.price else 0.0 for a in self._arms])
        price_out = np.array([float(a.price.output) if a.price else 0.0 for a in self._arms])
        outputs = np.minimum(output_tokens, contexts.max_output_tokens[:, None])
        from_tokens = contexts.input_tokens[:, None] * price_in + outputs * price_out
        from_units = unit_mean * (price_in + price_out)
        cost = np.where(np.isnan(from_units), from_tokens, from_units)
        return np.asarray(cost, dtype=np.float64) / (1_000.0 * NANO_PER_USD)

    def _option(self, name: str, default: float) -> float:
        """Return a numeric option; a policy checks its own range."""
        value = float(self._settings.options.get(name, default))
        if name in self._settings.options and not np.isfinite(value):
            raise ValueError(f"option {name} must be finite, got {value}")
        return value


def _sums(state: bytes) -> Floats:
    if len(state) != 64:
        raise ValueError(f"statistics of an arm take 64 bytes, got {len(state)}")
    sums = np.frombuffer(state, dtype="<f8").astype(np.float64)
    if not np.isfinite(sums).all():
        raise ValueError("statistics of an arm must be finite")
    return sums


def first_choice(score: Floats, eligible: Bools) -> Floats:
    """Return 1.0 at the best eligible arm of each row (the first of equals), else 0.0."""
    choice = np.zeros(score.shape)
    if 0 in score.shape:
        return choice
    best = np.argmax(np.where(eligible, score, -np.inf), axis=1)
    choice[np.arange(len(best)), best] = 1.0
    return choice * eligible


def shuffled(contexts: Contexts, arms: int) -> Floats:
    """Return a random score in [0, 1) for every arm and request, shape (n, k)."""
    columns = [uniforms(contexts.seeds, stream=1 + index) for index in range(arms)]
    return np.stack(columns, axis=1) if columns else np.zeros((len(contexts), 0))


def drawn(
    reward: Floats,
    cost_usd: Floats,
    scores: tuple[Floats, Floats],
    shares: Floats,
    contexts: Contexts,
    eligible: Bools,
) -> Ranking:
    """Return the ranking that follows the first score with the share given for each request.

    Parameters
    ----------
    scores : pair of ndarray, shape (n, k)
    shares : ndarray, shape (n,)
        Probability of the first of them.
    """
    first = uniforms(contexts.seeds, stream=0) < shares
    # Both may end at the same arm when one of the two cannot be taken.
    propensity = shares[:, None] * first_choice(scores[0], eligible)
    propensity += (1.0 - shares[:, None]) * first_choice(scores[1], eligible)
    return Ranking(
        reward=reward,
        cost_usd=cost_usd,
        score=np.where(first[:, None], scores[0], scores[1]),
        propensity=propensity,
        explored=(shares > 0.0) & (shares < 1.0),
    )


def ranked(reward: Floats, cost_usd: Floats, score: Floats, eligible: Bools) -> Ranking:
    """Return the ranking of a policy without chance."""
    return Ranking(
        reward=reward,
        cost_usd=cost_usd,
        score=score,
        propensity=first_choice(score, eligible),
        explored=np.zeros(len(score), dtype=np.bool_),
    )


def explored(ranking: Ranking, contexts: Contexts, eligible: Bools, *, epsilon: float) -> Ranking:
    """Return the ranking with a share ``epsilon`` of the requests in random order instead.

    Raises
    ------
    ValueError
        If ``epsilon`` is not in [0, 1].
    """
    if not 0.0 <= epsilon <= 1.0:
        raise ValueError(f"epsilon must be in [0, 1], got {epsilon}")
    chance = uniforms(contexts.seeds, stream=0) < epsilon
    noise = shuffled(contexts, ranking.score.shape[1])
    even = eligible / np.maximum(eligible.sum(axis=1, keepdims=True), 1)
    return Ranking(
        reward=ranking.reward,
        cost_usd=ranking.cost_usd,
        score=np.where(chance[:, None], noise, ranking.score),
        propensity=(1.0 - epsilon) * ranking.propensity + epsilon * even,
        explored=chance,
    )
