"""The arm with the best mean so far at the present dual price; no context."""

from __future__ import annotations

from policy.baselines.base import MeansPolicy, explored, ranked
from policy.terms import Bools, Contexts, Floats, Ranking, Settings


class Greedy(MeansPolicy):
    """Takes the best mean reward less the priced dollars; a share ``epsilon`` at random."""

    name = "greedy"
    OPTIONS = MeansPolicy.OPTIONS | {"epsilon"}

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._epsilon = self._option("epsilon", 0.05)
        if not 0.0 <= self._epsilon <= 1.0:
            raise ValueError(f"epsilon must be in [0, 1], got {self._epsilon}")

    def rank(self, contexts: Contexts, *, dual_price: Floats, eligible: Bools) -> Ranking:
        """Rank by mean reward less priced dollars."""
        reward, cost_usd = self._estimates(contexts)
        best = ranked(reward, cost_usd, reward - dual_price[:, None] * cost_usd, eligible)
        return explored(best, contexts, eligible, epsilon=self._epsilon)
