"""A floor of quality: the cheapest arm that reaches it, not the best that fits the budget."""

from __future__ import annotations

import numpy as np

from policy.extra import Extra, Kept, Scored, numbers
from policy.terms import Floats, Learning

TOP = 10.0
"""Score of a free arm that reaches the floor; any other score is below 9."""
_HORIZON = 40.0
_CORRECTION_MAX = 0.2


class QualityFloor(Extra):
    """Puts the arms whose estimated reward reaches the floor first, the cheapest foremost.

    Where none reaches it the score decides as always. The mean of the rewards is to meet the
    floor: estimates of chosen arms are too high on average, so what was missed or exceeded
    raises or lowers the level asked for, until the mean is as wanted.

    References
    ----------
    .. [1] PROTEUS, arXiv:2601.19402: an accuracy target given at run time.
    """

    name = "floor"
    spans_arms = True

    def __init__(self, floor: float) -> None:
        if not 0.0 <= floor <= 1.0:
            raise ValueError(f"floor must be in [0, 1], got {floor}")
        self._floor = floor
        self._missed = 0.0

    def level(self) -> float:
        """Return the estimate that an arm must reach now."""
        return self._floor + self._missed / _HORIZON

    def adjust(self, scored: Scored) -> Floats:
        """Return the scores with the arms that reach the floor above all others."""
        open_cost = np.where(scored.open_arms, scored.cost_usd, 0.0)
        scale = np.maximum(open_cost.max(axis=1, initial=0.0), 1e-300)[:, None]
        reaches = scored.open_arms & (scored.reward >= self.level())
        adjusted: Floats = np.where(reaches, TOP - open_cost / scale, scored.score)
        return adjusted

    def learned(self, learning: Learning) -> None:
        """Note by how much a reward missed the floor."""
        if learning.reward is not None:
            # A floor that no arm can reach is not made up for without end.
            most = _HORIZON * _CORRECTION_MAX
            missed = self._missed + self._floor - learning.reward
            self._missed = min(max(missed, -most), most)

    def kept(self, arm: str) -> Kept | None:
        """Return by how much the rewards have missed the floor."""
        return [self._missed] if self._missed else None

    def restore(self, arm: str, kept: Kept) -> None:
        """Put it back."""
        self._missed = numbers(kept, 1)[0]
