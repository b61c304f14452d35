"""A cost of switching: arms that are not at hand must be worth what bringing them costs."""

from __future__ import annotations

import numpy as np

from policy.extra import Extra, Kept, Scored
from policy.terms import Floats


class SwitchingCost(Extra):
    """Takes ``cost`` off the score of every arm that is not among the ``resident`` latest ones.

    For models or adapters of which a server holds only a few, and for prompt caches that grow cold.

    References
    ----------
    .. [1] POLAR, arXiv:2604.16583: the cost of paging an adapter in belongs into the score.
    """

    name = "switching"
    spans_arms = True

    def __init__(self, cost: float, *, resident: int) -> None:
        if not 0.0 <= cost < np.inf:
            raise ValueError(f"switching_cost must be finite and not negative, got {cost}")
        if resident < 1:
            raise ValueError(f"resident must be at least 1, got {resident}")
        self._cost = cost
        self._resident = resident
        self._latest: list[str] = []

    def adjust(self, scored: Scored) -> Floats:
        """Return the scores less the cost of arms that are not at hand."""
        if not self._latest:
            return scored.score
        away = np.array([arm not in self._latest for arm in scored.arms])
        adjusted: Floats = scored.score - self._cost * away
        return adjusted

    def decided(self, arm: str) -> None:
        """Put the arm first; the one used longest ago makes room."""
        others = [other for other in self._latest if other != arm]
        self._latest = [arm, *others][: self._resident]

    def kept(self, arm: str) -> Kept | None:
        """Return the latest arms."""
        return list(self._latest) or None

    def restore(self, arm: str, kept: Kept) -> None:
        """Put them back."""
        if not isinstance(kept, list) or not all(isinstance(name, str) for name in kept):
            raise ValueError(f"not names of arms: {kept!r}")
        self._latest = [str(name) for name in kept][: self._resident]
