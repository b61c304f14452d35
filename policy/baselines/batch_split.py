"""Each batch split best by a program over its own requests, as if the others did not exist."""

from __future__ import annotations

import numpy as np

from policy.baselines.base import DECIDED, ranked
from policy.neighbour_policy import NeighbourPolicy
from policy.oracle import within_budget
from policy.terms import Bools, Contexts, Floats, Ranking


class BatchSplit(NeighbourPolicy):
    """Solves the pooled knapsack of every batch on the estimates.

    With the option ``ceiling`` (dollars a request) a batch gets the ceiling of its requests and
    the balance of those before it; without it the dual price alone decides.
    """

    name = "batch-split"
    OPTIONS = NeighbourPolicy.OPTIONS | {"ceiling"}

    def rank(self, contexts: Contexts, *, dual_price: Floats, eligible: Bools) -> Ranking:
        """Rank the arm of the program's solution first, then by priced reward."""
        reward, cost_usd = self._estimates(contexts)
        price = dual_price[:, None]
        ceiling = self._option("ceiling", np.inf)
        if np.isinf(ceiling) or 0 in reward.shape:
            return ranked(reward, cost_usd, reward - price * cost_usd, eligible)
        seen = sum(self._own[arm.arm][DECIDED] for arm in self._arms)
        budget = ceiling * (seen + len(contexts)) - float(self._spent_usd().sum())
        worth = np.where(eligible, reward, 0.0)
        plan = within_budget(worth, cost_usd, budget_usd=max(budget, 0.0))
        score = reward - plan.dual_price * cost_usd
        # Even the largest gap between two scores must not outweigh the solution.
        lead = np.ptp(np.where(np.isfinite(score), score, 0.0)) + 1.0
        sent = np.flatnonzero(plan.choice >= 0)
        score[sent, plan.choice[sent]] += lead
        unsent = plan.choice < 0
        score[unsent] = -cost_usd[unsent]
        return ranked(reward, cost_usd, score, eligible)
