"""Strong or weak: the strong arm where it is expected to do better by more than a threshold."""

from __future__ import annotations

import numpy as np

from policy.baselines.base import drawn, explored, ranked
from policy.neighbour_policy import NeighbourPolicy
from policy.terms import Bools, Contexts, Floats, Ranking, Settings, UnknownArmError


class Threshold(NeighbourPolicy):
    """Sends a target share of the calls to the strong arm, those that are said to gain most.

    The threshold is the quantile of the estimated gains over the last ``sample`` outcomes, so that
    it is calibrated on one's own traffic and follows it. Options: ``strong``, ``weak`` (otherwise
    the arms with the best mean reward and with the least cost), ``share`` (0.5), ``epsilon``
    (0.05 at random among all, without which the gains of an arm never asked stay unknown),
    ``sample`` (256); further those of :class:`policy.neighbours.NeighbourPolicy`.

    References
    ----------
    .. [1] Ong et al., RouteLLM, arXiv:2406.18665: threshold calibrated to a share of calls.
    """

    name = "threshold"
    OPTIONS = NeighbourPolicy.OPTIONS | {"strong", "weak", "share", "epsilon", "sample"}

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._share = self._option("share", 0.5)
        self._epsilon = self._option("epsilon", 0.05)
        self._sample = int(self._option("sample", 256))
        if not (0.0 <= self._share <= 1.0 and 0.0 <= self._epsilon <= 1.0 and self._sample >= 1):
            raise ValueError("share and epsilon must be in [0, 1] and sample at least 1")

    def rank(self, contexts: Contexts, *, dual_price: Floats, eligible: Bools) -> Ranking:
        """Rank the strong arm first above the threshold, else the weak one, then by cost."""
        reward, cost_usd = self._estimates(contexts)
        if 0 in reward.shape:
            return ranked(reward, cost_usd, np.zeros(reward.shape), eligible)
        strong, weak = self._pair(cost_usd)
        upper = -1.0 - cost_usd / max(float(cost_usd.max()), 1e-300)
        upper[:, weak] = 1.0
        lower = upper.copy()
        upper[:, strong], lower[:, strong] = 2.0, 0.0
        shares = self._shares(reward[:, strong] - reward[:, weak], strong, weak)
        best = drawn(reward, cost_usd, (upper, lower), shares, contexts, eligible)
        return explored(best, contexts, eligible, epsilon=self._epsilon)

    def _pair(self, cost_usd: Floats) -> tuple[int, int]:
        names = [arm.arm for arm in self._arms]
        mean_cost = self._mean_cost_usd(cost_usd)
        pair = []
        for option, default in (("strong", self._mean_reward()), ("weak", -mean_cost)):
            name = self._settings.options.get(option)
            if name is not None and name not in names:
                raise UnknownArmError(str(name))
            pair.append(int(np.argmax(default)) if name is None else names.index(str(name)))
        return pair[0], pair[1]

    def _shares(self, gain: Floats, strong: int, weak: int) -> Floats:
        """Return the probability of the strong arm for each request: 0, 1, or between at a tie."""
        recent = self._recent_contexts(self._sample)
        if recent is None:
            return np.full(len(gain), self._share)
        reward, _ = self._estimates(recent)
        seen = reward[:, strong] - reward[:, weak]
        threshold = float(np.quantile(seen, 1.0 - self._share, method="higher"))
        # Estimates take few values when neighbours are few: those at the threshold are drawn.
        above, at = float(np.mean(seen > threshold)), float(np.mean(seen == threshold))
        tied = float(np.clip((self._share - above) / at, 0.0, 1.0))
        return np.where(gain > threshold, 1.0, np.where(gain == threshold, tied, 0.0))
