"""A target share of the calls for the strong arm, calibrated on one's own traffic."""

from __future__ import annotations

import numpy as np

from policy.extra import Extra, Kept, Scored, numbers
from policy.terms import Floats

_STEP = 0.005
"""Reward by which the threshold moves for a call that is owed."""
_MOST = 2.0


class StrongShare(Extra):
    """Moves the strong arm's score so that it gets a given share of the calls.

    Those requests get it that gain most from it, by the score without this option: the score is
    moved by a threshold that follows what is owed. Every decision adds the share and takes one for
    a strong call, within a batch as between batches.

    References
    ----------
    .. [1] Ong et al., RouteLLM, arXiv:2406.18665: a threshold calibrated to a share of calls.
    """

    name = "strong_share"
    spans_arms = True

    def __init__(self, strong: str, share: float) -> None:
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"strong_share must be in [0, 1], got {share}")
        self._strong = strong
        self._share = share
        self._moved = 0.0

    def adjust(self, scored: Scored) -> Floats:
        """Return the scores with the strong arm's moved."""
        if self._strong not in scored.arms or len(scored.score) == 0:
            return scored.score
        column = scored.arms.index(self._strong)
        others = np.where(scored.open_arms, scored.score, -np.inf)
        others[:, column] = -np.inf
        gains = (scored.score[:, column] - others.max(axis=1, initial=-np.inf)).tolist()
        moved = self._moved
        moves = []
        for gain, strong in zip(gains, scored.open_arms[:, column].tolist(), strict=True):
            moves.append(moved)
            taken = strong and gain + moved > 0.0
            moved = self._after(moved, strong=taken)
        adjusted = scored.score.copy()
        adjusted[:, column] += moves
        return adjusted

    def decided(self, arm: str) -> None:
        """Note a call: one more is owed, or fewer."""
        self._moved = self._after(self._moved, strong=arm == self._strong)

    def kept(self, arm: str) -> Kept | None:
        """Return the threshold."""
        return [self._moved] if self._moved else None

    def restore(self, arm: str, kept: Kept) -> None:
        """Put it back."""
        self._moved = numbers(kept, 1)[0]

    def _after(self, moved: float, *, strong: bool) -> float:
        """Return the threshold after a call; what cannot be had is not owed without end."""
        return min(max(moved + _STEP * (self._share - strong), -_MOST), _MOST)
