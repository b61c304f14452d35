"""The arm with most budget left, by the estimated spend so far."""

from __future__ import annotations

import numpy as np

from policy.baselines.base import ranked
from policy.neighbour_policy import NeighbourPolicy
from policy.terms import Bools, Contexts, Floats, Ranking


class KnnCost(NeighbourPolicy):
    """Takes the arm whose budget would have most left after this request.

    This is what PORT's comparison calls kNN-cost. Budgets are options ``budget.ARM`` in dollars;
    an arm without one has the mean of the others, so without any the spend is evened out.
    """

    name = "knn-cost"
    OPTIONS = NeighbourPolicy.OPTIONS | {"budget.*"}

    def rank(self, contexts: Contexts, *, dual_price: Floats, eligible: Bools) -> Ranking:
        """Rank by what is left; within a batch each request counts those before it."""
        reward, cost_usd = self._estimates(contexts)
        given = [self._option(f"budget.{arm.arm}", np.nan) for arm in self._arms]
        named = [budget for budget in given if not np.isnan(budget)]
        usual = sum(named) / len(named) if named else 0.0
        left = np.array([usual if np.isnan(budget) else budget for budget in given])
        left = left - self._spent_usd() if len(self._arms) else left
        score = np.zeros(reward.shape)
        for request in range(len(contexts)):
            score[request] = left - cost_usd[request]
            if eligible[request].any():
                best = int(np.argmax(np.where(eligible[request], score[request], -np.inf)))
                left[best] -= cost_usd[request, best]
        return ranked(reward, cost_usd, score, eligible)
