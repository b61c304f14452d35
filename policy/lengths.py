"""Output lengths per arm: a decaying histogram, from which upper quantiles are read.

Buckets grow by a fourth of a power of two, so a quantile is at most 19 % too large and never too
small for what was seen. Used where a reservation at the caller's output cap no longer fits what
is left of a budget, although the answer will hardly be that long.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import msgspec
import numpy as np

from policy.money import Price
from policy.terms import Floats, Ints, Lessons

_STEPS = 4
_BUCKETS = 1 + 27 * _STEPS  # up to 2**27 tokens, above TOKENS_MAX
_KEEP = 0.999
_ENOUGH = 30.0
_SPAN = 4_096
_LARGEST = np.array([0, *(math.floor(2 ** (i / _STEPS)) for i in range(_BUCKETS - 1))], np.int64)
"""The longest answer that each bucket holds."""
_GROWN = _KEEP ** -np.arange(_SPAN + 1.0)
"""Instead of all counts fading, the next one weighs more."""


class OutputLengths:
    """The output lengths of one arm."""

    def __init__(self) -> None:
        self._counts = np.zeros(_BUCKETS)
        self._since = 0

    def add(self, tokens: Ints) -> None:
        """Count the lengths of answers, shape (n,), in their order."""
        start = 0
        while start < len(tokens):
            part = tokens[start : start + _SPAN - self._since]
            buckets = np.minimum(np.searchsorted(_LARGEST, part), _BUCKETS - 1)
            weights = _GROWN[self._since + 1 : self._since + 1 + len(part)]
            np.add.at(self._counts, buckets, weights)
            self._since += len(part)
            start += len(part)
            if self._since == _SPAN:
                self._counts /= _GROWN[_SPAN]
                self._since = 0

    def quantile(self, share: float) -> int | None:
        """Return a length that ``share`` of the answers did not exceed; None after too few.

        Examples
        --------
        >>> lengths = OutputLengths()
        >>> lengths.add(np.arange(1, 101))
        >>> 99 <= lengths.quantile(0.99) <= 119
        True
        """
        total = self._counts.sum()
        if total < _ENOUGH * _GROWN[self._since]:
            return None
        index = int(np.searchsorted(np.cumsum(self._counts), share * total))
        return 0 if index == 0 else math.ceil(2 ** ((min(index, _BUCKETS - 1) - 1) / _STEPS))

    def dump(self) -> bytes:
        """Return the counts as bytes."""
        return msgspec.msgpack.encode([self._since, self._counts.tobytes()])

    def load(self, data: bytes) -> None:
        """Put the counts back."""
        self._since, counts = msgspec.msgpack.decode(data)
        self._counts = np.frombuffer(counts, np.float64).copy()


def output_tokens(lessons: Lessons, *, price: Callable[[str], Price | None]) -> Floats:
    """Return the output tokens of calls, shape (n,); nan where they are not known.

    As they were reported, or from the cost, at the price of the decision or else at ``price``
    of the arm.
    """
    tokens = lessons.output_tokens.astype(np.float64)
    unknown = tokens < 0.0
    # Usage is reported almost always.
    if not np.count_nonzero(unknown):
        return tokens
    for row in unknown.nonzero()[0].tolist():
        paid = lessons.prices[row] or price(lessons.arm)
        cost = lessons.cost_nanousd.item(row)
        tokens[row] = np.nan
        if cost >= 0 and paid is not None and paid.output > 0:
            thousandths = cost * 1_000 - lessons.input_tokens.item(row) * paid.input
            tokens[row] = max(thousandths, 0) / paid.output
    return tokens
