"""The arm whose nearest neighbours did best, whatever it costs."""

from __future__ import annotations

from policy.baselines.base import explored, ranked
from policy.neighbour_policy import NeighbourPolicy
from policy.terms import Bools, Contexts, Floats, Ranking, Settings


class KnnPerformance(NeighbourPolicy):
    """Takes the best estimated reward; a share ``epsilon`` at random, for the estimates' sake.

    Further options are those of :class:`policy.neighbours.NeighbourPolicy`.
    """

    name = "knn-performance"
    OPTIONS = NeighbourPolicy.OPTIONS | {"epsilon"}

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._epsilon = self._option("epsilon", 0.05)
        if not 0.0 <= self._epsilon <= 1.0:
            raise ValueError(f"epsilon must be in [0, 1], got {self._epsilon}")

    def rank(self, contexts: Contexts, *, dual_price: Floats, eligible: Bools) -> Ranking:
        """Rank by estimated reward; the dual price plays no part."""
        reward, cost_usd = self._estimates(contexts)
        best = ranked(reward, cost_usd, reward, eligible)
        return explored(best, contexts, eligible, epsilon=self._epsilon)
