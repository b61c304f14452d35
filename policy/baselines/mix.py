"""A static mix of two arms."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from policy.baselines.base import MeansPolicy, drawn, ranked
from policy.terms import Bools, Contexts, Floats, Ranking, Settings, UnknownArmError


class Mix(MeansPolicy):
    """Sends a share of the requests, drawn without looking at them, to a better and dearer arm.

    Options ``strong``, ``weak`` and ``share`` name the mix; otherwise it is the pair, and the
    share, with the best mean reward whose mean cost is within ``ceiling`` dollars a request.
    Without any of these it is half and half of the cheapest and the best arm.
    """

    name = "mix"
    OPTIONS = MeansPolicy.OPTIONS | {"strong", "weak", "share", "ceiling"}

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._strong = settings.options.get("strong")
        self._weak = settings.options.get("weak")
        self._share = self._option("share", 0.5)
        self._ceiling = self._option("ceiling", float("inf"))
        if not 0.0 <= self._share <= 1.0:
            raise ValueError(f"share must be in [0, 1], got {self._share}")

    def rank(self, contexts: Contexts, *, dual_price: Floats, eligible: Bools) -> Ranking:
        """Rank the drawn arm of the two first, then the other, then the rest by cost."""
        reward, cost_usd = self._estimates(contexts)
        if 0 in reward.shape:
            return ranked(reward, cost_usd, np.zeros(reward.shape), eligible)
        strong, weak, share = self._pair(reward, cost_usd)
        upper = -1.0 - cost_usd / max(float(cost_usd.max()), 1e-300)
        lower = upper.copy()
        upper[:, weak], lower[:, strong] = 1.0, 1.0
        upper[:, strong], lower[:, weak] = 2.0, 2.0
        shares = np.full(len(contexts), share)
        return drawn(reward, cost_usd, (upper, lower), shares, contexts, eligible)

    def _pair(self, reward: Floats, cost_usd: Floats) -> tuple[int, int, float]:
        mean_reward, mean_cost = reward.mean(axis=0), self._mean_cost_usd(cost_usd)
        if self._strong is not None and self._weak is not None:
            return self._column(str(self._strong)), self._column(str(self._weak)), self._share
        cheapest = int(np.argmin(mean_cost))
        if np.isinf(self._ceiling):
            return int(np.argmax(mean_reward)), cheapest, self._share
        best = (mean_reward[cheapest], cheapest, cheapest, 1.0)
        for one, two in combinations(range(len(mean_cost)), 2):
            weak, strong = (one, two) if mean_cost[one] <= mean_cost[two] else (two, one)
            spare, step = self._ceiling - mean_cost[weak], mean_cost[strong] - mean_cost[weak]
            if spare < 0:
                continue
            share = 1.0 if step <= spare else float(spare / step)
            for share_tried in (0.0, share):
                value = (1.0 - share_tried) * mean_reward[weak] + share_tried * mean_reward[strong]
                if value > best[0]:
                    best = (value, strong, weak, share_tried)
        return best[1], best[2], best[3]

    def _column(self, name: str) -> int:
        for index, arm in enumerate(self._arms):
            if arm.arm == name:
                return index
        raise UnknownArmError(name)
