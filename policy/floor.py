"""A floor of quality: the cheapest arm that reaches it, not the best that fits the budget."""

from __future__ import annotations

import numpy as np

from policy.extra import Extra, Kept, Scored, numbers
from policy.terms import Floats, Learning

TOP = 10.0
"""Score of a free arm that reaches the floor; any other score is below 9."""
_KEEP = 0.995
_HORIZON = 200.0
_CORRECTION_MAX = 0.2


class QualityFloor(Extra):
    """Puts the arms whose estimated reward reaches the floor first, the cheapest foremost.

    Where none reaches it the score decides as always. The mean of the rewards is to meet the
    floor: estimates of chosen arms are too high on average, so what was missed or exceeded lately
    raises or lowers the level asked for, spread over the next 200 requests.

    References
    ----------
    .. [1] PROTEUS, arXiv:2601.19402: an accuracy target given at run time.
    """

    name = "floor"

    def __init__(self, floor: float) -> None:
        if not 0.0 <= floor <= 1.0:
            raise ValueError(f"floor must be in [0, 1], got {floor}")
        self._floor = floor
        self._missed: dict[str, float] = {}

    def level(self) -> float:
        """Return the estimate that an arm must reach now."""
        missed = sum(self._missed.values()) / _HORIZON
        return self._floor + min(max(missed, -_CORRECTION_MAX), _CORRECTION_MAX)

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
            before = self._missed.get(learning.arm, 0.0)
            self._missed[learning.arm] = _KEEP * before + self._floor - learning.reward

    def kept(self, arm: str) -> Kept | None:
        """Return what was missed lately with this arm."""
        return [self._missed[arm]] if arm in self._missed else None

    def restore(self, arm: str, kept: Kept) -> None:
        """Put it back."""
        self._missed[arm] = numbers(kept, 1)[0]
