"""One arm for everything: a named one, or the best that fits."""

from __future__ import annotations

import numpy as np

from policy.baselines.base import MeansPolicy, ranked
from policy.terms import Bools, Contexts, Floats, Ranking, Settings, UnknownArmError


class Fixed(MeansPolicy):
    """Takes the arm ``arm``, or the best on average whose mean cost is within ``ceiling`` dollars.

    With neither option it is the arm with the best mean reward at the dual price. If no arm fits
    the ceiling it is the cheapest.
    """

    name = "fixed"
    OPTIONS = MeansPolicy.OPTIONS | {"arm", "ceiling"}

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._arm = settings.options.get("arm")
        self._ceiling = self._option("ceiling", float("inf"))

    def rank(self, contexts: Contexts, *, dual_price: Floats, eligible: Bools) -> Ranking:
        """Rank the named arm first, else by mean reward among the arms that fit."""
        reward, cost_usd = self._estimates(contexts)
        if self._arm is not None:
            named = np.array([arm.arm == self._arm for arm in self._arms])
            if not named.any():
                raise UnknownArmError(str(self._arm))
            return ranked(reward, cost_usd, named - cost_usd, eligible)
        # The whole history decides, not this request: the arm stays the same within a batch.
        mean_cost = self._mean_cost_usd(cost_usd)
        score = reward - (dual_price[:, None] if np.isinf(self._ceiling) else 0.0) * mean_cost
        score = np.where(mean_cost <= self._ceiling, score, -1.0 - mean_cost)
        return ranked(reward, cost_usd, score, eligible)
