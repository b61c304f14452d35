"""``pareto``: a linear bandit for reward and for output length, priced in expected dollars.

Per arm it learns the reward and the logarithm of the output tokens from the features. The score
of an arm is ``reward + bonus - dual price * expected dollars``; expected dollars are the expected
tokens at the current price, so a changed price acts on the next request.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from policy.arm_state import LENGTH_NOISE, REWARD_NOISE, ArmState, published
from policy.extra import Scored
from policy.extras import Extras, joined, parted
from policy.lengths import output_tokens
from policy.linear import Solution, Solver
from policy.marks import mark_of, split_mark
from policy.mixing import Forced, mix, thompson
from policy.money import Price
from policy.pareto_options import options_of
from policy.priced_arms import PricedArms, prior_means
from policy.terms import (
    Arm,
    Bools,
    Contexts,
    Floats,
    Learning,
    Lessons,
    Ranking,
    Settings,
    UnknownArmError,
)

UNPRICED_SCORE = -1e6
"""Score of an arm without a price; it is never chosen."""

_REWARD_PRIOR, _LENGTH_PRIOR = 0.5, float(np.log1p(300.0))
_LENGTH_SIGNAL = 0.3
_OLDEST = 10_000
"""Decisions after which an outcome's weight falls no further."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Fit:
    reward: Solution
    length: Solution


class Pareto:
    """Cost-aware linear bandit; see the module. A :class:`policy.terms.Policy`.

    Its options are :class:`policy.pareto_options.ParetoOptions` and those of
    :class:`policy.extras.Extras`.

    References
    ----------
    .. [1] Li, Chu, Langford, Schapire, arXiv:1003.0146 (LinUCB).
    .. [2] Agrawal, Goyal, arXiv:1209.3352 (linear Thompson sampling).
    .. [3] ParetoBandit, arXiv:2604.00136 (cost-aware, budget-paced routing).
    """

    name = "pareto"

    def __init__(self, settings: Settings) -> None:
        options = options_of(settings)
        self._options = options
        self._faded = np.array([options.forgetting**age for age in range(_OLDEST + 1)])
        self._width = settings.dimensions + 1
        self._features = mark_of(settings.features)
        self._arms: tuple[Arm, ...] = ()
        self._columns = PricedArms.of(())
        self._states: dict[str, ArmState] = {}
        self._fit: _Fit | None = None
        self._extras = Extras(settings.options)
        if self._extras.span_arms:
            # Only then, because arms that are checkpointed together take more writing.
            self.spans_arms: Literal[True] = True
        self.in_batches = not self._extras
        self._solver = Solver(
            signals=(options.signal, _LENGTH_SIGNAL), noises=(REWARD_NOISE, LENGTH_NOISE)
        )

    def set_arms(self, arms: tuple[Arm, ...]) -> None:
        """Take the arms of the catalog, in column order; what was learned of the others is kept."""
        self._arms = arms
        self._columns = PricedArms.of(arms)
        for arm in arms:
            self._state(arm.arm)
        self._fit = None

    def rank(self, contexts: Contexts, *, dual_price: Floats, eligible: Bools) -> Ranking:
        """Rank the arms for each request; the state does not change.

        Raises
        ------
        ValueError
            If the features are not of the policy's width.
        """
        if contexts.features.shape[1:] != (self._width,):
            raise ValueError(f"features must be (n, {self._width}), not {contexts.features.shape}")
        fit = self._solved()
        features = contexts.features
        priced, all_priced = self._columns.priced, self._columns.all_priced
        open_arms: Bools = eligible if all_priced else eligible & priced
        reward = fit.reward.predict(features)
        if self._extras:
            reward = self._extras.shifted([arm.arm for arm in self._arms], reward)
        reward = np.minimum(np.maximum(reward, -0.2), 1.2)
        cost = self._columns.cost_usd(contexts, fit.length)
        charge = dual_price[:, None] * cost
        alpha = self._options.alpha
        width = alpha * fit.reward.deviation(features) if alpha > 0 else np.zeros_like(reward)
        drawn = self._options.thompson and alpha > 0
        score = self._adjusted(reward if drawn else reward + width, cost, charge, open_arms)
        shares = None
        if drawn:
            score, shares = thompson(score, width, open_arms, contexts.seeds)
        if not all_priced:
            score = np.where(priced, score, UNPRICED_SCORE)
        forced: Sequence[Forced] = ()
        if offered := self._offered():
            best_possible = self._adjusted(np.ones_like(reward), cost, charge, open_arms)
            forced = self._forced(offered, score, best_possible, open_arms)
        mixed = mix(
            score,
            shares,
            open_arms,
            forced=forced,
            epsilon=self._options.epsilon,
            seeds=contexts.seeds,
        )
        return Ranking(
            reward=np.minimum(np.maximum(reward, 0.0), 1.0),
            cost_usd=cost,
            score=mixed.score,
            propensity=mixed.propensity,
            explored=mixed.explored,
        )

    def estimates(self, contexts: Contexts) -> tuple[Floats, Floats]:
        """Return expected reward and dollars of each arm, shape (n, k) each, as :meth:`rank`."""
        fit = self._solved()
        reward = np.minimum(np.maximum(fit.reward.predict(contexts.features), 0.0), 1.0)
        return reward, self._columns.cost_usd(contexts, fit.length)

    def decided(self, arm: str, features: Floats, *, explored: bool) -> None:
        """Count the pull; forced pulls end by it, however late the outcomes come."""
        self._state(arm).pulls += 1
        if self._extras:
            self._extras.decided(arm)

    def decided_all(self, arm: str, features: Floats, *, explored: Bools) -> None:
        """Count the pulls."""
        self._state(arm).pulls += len(explored)

    def learn(self, learning: Learning) -> None:
        """Take in one outcome, at once and in order; a late one weighs less."""
        self.learn_all(Lessons.of(learning))
        if self._extras:
            self._extras.learned(learning)

    def learn_all(self, lessons: Lessons) -> None:
        """Take in outcomes of one arm, in order."""
        state = self._state(lessons.arm)
        weights = self._faded[np.minimum(lessons.age, _OLDEST)]
        tokens = output_tokens(lessons, price=self._price)
        # By plain numbers: vector functions may round otherwise in another batch.
        lengths = np.array([*map(math.log1p, tokens.tolist())])
        changed = False
        for moments, told, values in (
            (state.reward, lessons.reward, lessons.reward),
            (state.length, tokens, lengths),
        ):
            known = told == told
            if np.count_nonzero(known) == len(values):
                changed |= moments.add(lessons.features, values, weights)
            else:
                changed |= moments.add(lessons.features[known], values[known], weights[known])
        if changed:
            self._fit = None

    def dump(self, arm: str) -> bytes:
        """Return what was learned of one arm in this partition."""
        return self._features + joined(self._extras.dump(arm), self._state(arm).dump())

    def load(self, arm: str, state: bytes) -> None:
        """Put back what :meth:`dump` returned; ``ValueError`` if it is of another shape.

        Of what was learned from other features only the means are taken over.
        """
        features, rest = split_mark(state)
        extra, vector = parted(rest)
        loaded = self._new()
        loaded.restore(vector)
        if features != self._features:
            loaded.forget_features()
        self._extras.load(arm, extra)
        loaded.elsewhere = self._state(arm).elsewhere
        self._states[arm] = loaded
        self._fit = None

    def merge(self, arm: str, source: int, state: bytes) -> None:
        """Let ``rank`` also count what partition ``source`` has learned; replaces its last."""
        features, rest = split_mark(state)
        if features != self._features:
            raise ValueError("learned from other features")
        found = published(parted(rest)[1], self._width, self._options.forgetting)
        self._state(arm).merge(source, *found)
        self._fit = None

    def _state(self, arm: str) -> ArmState:
        state = self._states.get(arm)
        if state is None:
            state = self._states[arm] = self._new()
        return state

    def _new(self) -> ArmState:
        return ArmState(self._width, forgetting=self._options.forgetting)

    def _solved(self) -> _Fit:
        if self._fit is None:
            moments = [self._states[arm.arm].moments() for arm in self._arms]
            rewards, lengths = [pair[0] for pair in moments], [pair[1] for pair in moments]
            columns = self._columns
            prior = [
                prior_means(columns.rewards, rewards, _REWARD_PRIOR),
                prior_means(columns.log_tokens, lengths, _LENGTH_PRIOR),
            ]
            reward, length = self._solver.solve((rewards, lengths), prior=np.array(prior))
            self._fit = _Fit(reward=reward, length=length)
        return self._fit

    def _adjusted(
        self, reward: Floats, cost_usd: Floats, charge: Floats, open_arms: Bools
    ) -> Floats:
        """Return the scores at these rewards, (n, k), with the options in them."""
        score = reward - charge
        if not self._extras:
            return score
        return self._extras.adjusted(
            Scored(
                arms=tuple(arm.arm for arm in self._arms),
                score=score,
                reward=reward,
                cost_usd=cost_usd,
                open_arms=open_arms,
            )
        )

    def _offered(self) -> list[tuple[int, int]]:
        """Return the arms that are offered requests whatever their estimates say, by column.

        With each is how many pulls it lacks yet; 0 for one whose reward was seen to drop.
        """
        offered = []
        for column, arm in enumerate(self._arms):
            state = self._states[arm.arm]
            missing = 0
            # Most arms have had enough pulls of this partition alone.
            if state.pulls < arm.explore:
                missing = max(arm.explore - state.experience(), 0)
            if missing or state.reward.dropped:
                offered.append((column, missing))
        return offered

    def _forced(
        self, offered: Sequence[tuple[int, int]], score: Floats, best_possible: Floats,
        open_arms: Bools,
    ) -> Sequence[Forced]:  # fmt: skip
        new = sum(1 for _, missing in offered if missing)
        best = np.where(open_arms, score, -np.inf).max(axis=1, initial=-np.inf)
        return [
            Forced(
                column=column,
                share=self._options.force / new if missing else self._options.probe,
                allowed=open_arms[:, column] & (best_possible[:, column] > best),
                count=missing or len(score),
            )
            for column, missing in offered
        ]

    def _price(self, arm: str) -> Price | None:
        for known in self._arms:
            if known.arm == arm:
                return known.price
        if arm in self._states:
            return None
        raise UnknownArmError(arm)
