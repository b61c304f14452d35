"""The cheapest arm, by its expected dollars for this request."""

from __future__ import annotations

from policy.baselines.base import MeansPolicy, ranked
from policy.terms import Bools, Contexts, Floats, Ranking


class Cheapest(MeansPolicy):
    """Always takes the arm that is expected to cost least."""

    name = "cheapest"

    def rank(self, contexts: Contexts, *, dual_price: Floats, eligible: Bools) -> Ranking:
        """Rank by expected dollars."""
        reward, cost_usd = self._estimates(contexts)
        return ranked(reward, cost_usd, -cost_usd, eligible)
