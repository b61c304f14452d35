"""A random arm."""

from __future__ import annotations

import numpy as np

from policy.baselines.base import MeansPolicy, explored, ranked
from policy.terms import Bools, Contexts, Floats, Ranking


class Uniform(MeansPolicy):
    """Takes every eligible arm with the same probability, whatever it costs."""

    name = "random"

    def rank(self, contexts: Contexts, *, dual_price: Floats, eligible: Bools) -> Ranking:
        """Rank in random order."""
        reward, cost_usd = self._estimates(contexts)
        still = ranked(reward, cost_usd, np.zeros(reward.shape), eligible)
        return explored(still, contexts, eligible, epsilon=1.0)
