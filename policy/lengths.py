"""Output lengths per arm: a decaying histogram, from which upper quantiles are read.

Buckets grow by a fourth of a power of two, so a quantile is at most 19 % too large and never too
small for what was seen. Used where a reservation at the caller's output cap no longer fits what
is left of a budget, although the answer will hardly be that long.
"""

from __future__ import annotations

import math

import numpy as np

_STEPS = 4
_BUCKETS = 1 + 27 * _STEPS  # up to 2**27 tokens, above TOKENS_MAX
_KEEP = 0.999
_ENOUGH = 30.0


class OutputLengths:
    """The output lengths of one arm."""

    def __init__(self) -> None:
        self._counts = np.zeros(_BUCKETS)

    def add(self, tokens: int) -> None:
        """Count one answer's length."""
        self._counts *= _KEEP
        self._counts[0 if tokens == 0 else math.ceil(math.log2(tokens) * _STEPS) + 1] += 1.0

    def quantile(self, share: float) -> int | None:
        """Return a length that ``share`` of the answers did not exceed; None after too few.

        Examples
        --------
        >>> lengths = OutputLengths()
        >>> for tokens in range(1, 101):
        ...     lengths.add(tokens)
        >>> 99 <= lengths.quantile(0.99) <= 119
        True
        """
        total = self._counts.sum()
        if total < _ENOUGH:
            return None
        index = int(np.searchsorted(np.cumsum(self._counts), share * total))
        return 0 if index == 0 else math.ceil(2 ** ((min(index, _BUCKETS - 1) - 1) / _STEPS))

    def dump(self) -> bytes:
        """Return the counts as bytes."""
        return self._counts.tobytes()

    def load(self, data: bytes) -> None:
        """Put the counts back."""
        self._counts = np.frombuffer(data, np.float64).copy()
