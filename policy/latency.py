"""A weight of latency in the score: reward given up per second of waiting."""

from __future__ import annotations

import numpy as np

from policy.extra import Extra, Kept, Scored, numbers
from policy.terms import Floats, Learning

_KEEP = 0.99


class LatencyWeight(Extra):
    """Takes ``weight`` times the arm's mean latency in seconds off its score.

    The mean forgets within some hundred calls. An arm of which none is known counts as fast as the
    fastest: it is tried, and known after one call.
    """

    name = "latency"

    def __init__(self, weight: float) -> None:
        if not 0.0 <= weight < np.inf:
            raise ValueError(f"latency_weight must be finite and not negative, got {weight}")
        self._weight = weight
        self._sums: dict[str, tuple[float, float]] = {}

    def adjust(self, scored: Scored) -> Floats:
        """Return the scores less the weighed seconds."""
        seconds = np.array([self._mean(arm) for arm in scored.arms])
        known = ~np.isnan(seconds)
        least = seconds[known].min() if known.any() else 0.0
        adjusted: Floats = scored.score - self._weight * np.where(known, seconds, least)
        return adjusted

    def learned(self, learning: Learning) -> None:
        """Note how long the call took, if that was reported."""
        if learning.latency_ms is not None:
            total, count = self._sums.get(learning.arm, (0.0, 0.0))
            seconds = learning.latency_ms / 1_000.0
            self._sums[learning.arm] = (_KEEP * total + seconds, _KEEP * count + 1.0)

    def kept(self, arm: str) -> Kept | None:
        """Return the decayed sum and count."""
        return list(self._sums[arm]) if arm in self._sums else None

    def restore(self, arm: str, kept: Kept) -> None:
        """Put the sum and count back."""
        total, count = numbers(kept, 2)
        self._sums[arm] = (total, count)

    def _mean(self, arm: str) -> float:
        total, count = self._sums.get(arm, (0.0, 0.0))
        return total / count if count > 0.0 else float("nan")
