"""A target share of the calls for the strong arm, calibrated on one's own traffic."""

from __future__ import annotations

import numpy as np

from policy.extra import Extra, Kept, Scored, numbers
from policy.terms import Floats

_WHOLE = 64
"""Requests of a batch from which on its own order says who gets the strong arm."""
_STEP = 0.002
_OWED_MAX = 500.0


class StrongShare(Extra):
    """Moves the strong arm's score so that it gets a given share of the calls.

    Those requests get it that gain most from it, by the score without this option. A large batch is
    divided by rank; for a small one the score is moved by a threshold that follows what is owed:
    every decision adds the share, and takes one for a strong call.

    References
    ----------
    .. [1] Ong et al., RouteLLM, arXiv:2406.18665: a threshold calibrated to a share of calls.
    """

    name = "strong_share"

    def __init__(self, strong: str, share: float) -> None:
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"strong_share must be in [0, 1], got {share}")
        self._strong = strong
        self._share = share
        self._owed: dict[str, float] = {}

    def adjust(self, scored: Scored) -> Floats:
        """Return the scores with the strong arm's moved."""
        if self._strong not in scored.arms or len(scored.score) == 0:
            return scored.score
        column = scored.arms.index(self._strong)
        owed = min(max(sum(self._owed.values()), -_OWED_MAX), _OWED_MAX)
        adjusted = scored.score.copy()
        rows = np.flatnonzero(scored.open_arms[:, column] & (scored.open_arms.sum(axis=1) > 1))
        if len(rows) < _WHOLE:
            adjusted[:, column] += _STEP * owed
            return adjusted
        others = np.where(scored.open_arms, scored.score, -np.inf)[rows]
        others[:, column] = -np.inf
        gain = scored.score[rows, column] - others.max(axis=1)
        wanted = int(np.clip(round(self._share * len(rows) + owed), 0, len(rows)))
        order = np.sort(gain)[::-1]
        above = order[wanted - 1] if wanted else order[0] + 2.0
        below = order[wanted] if wanted < len(order) else order[-1] - 2.0
        adjusted[:, column] -= (above + below) / 2.0
        return adjusted

    def decided(self, arm: str) -> None:
        """Note a call: who was owed how much."""
        owed = self._owed.get(arm, 0.0) + self._share - (arm == self._strong)
        # What cannot be had, because the arm is barred, is not owed for ever.
        self._owed[arm] = min(max(owed, -_OWED_MAX), _OWED_MAX)

    def kept(self, arm: str) -> Kept | None:
        """Return what the calls of this arm left owed."""
        return [self._owed[arm]] if arm in self._owed else None

    def restore(self, arm: str, kept: Kept) -> None:
        """Put it back."""
        self._owed[arm] = numbers(kept, 1)[0]
