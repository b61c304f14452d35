"""Every arm in turn."""

from __future__ import annotations

import numpy as np

from policy.baselines.base import DECIDED, MeansPolicy, ranked
from policy.terms import Bools, Contexts, Floats, Ranking


class RoundRobin(MeansPolicy):
    """Goes through the arms in the order of the catalog, one request each."""

    name = "round-robin"

    def rank(self, contexts: Contexts, *, dual_price: Floats, eligible: Bools) -> Ranking:
        """Rank the arm whose turn it is first; an arm that cannot be taken loses its turn."""
        reward, cost_usd = self._estimates(contexts)
        # The turn is the number of decisions so far, so it survives a restart with the sums.
        turn = int(sum(self._own[arm.arm][DECIDED] for arm in self._arms))
        arms = max(len(self._arms), 1)
        starts = (turn + np.arange(len(contexts))) % arms
        waiting = (np.arange(len(self._arms)) - starts[:, None]) % arms
        return ranked(reward, cost_usd, -waiting.astype(np.float64), eligible)
