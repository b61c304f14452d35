"""A watch for sudden changes of what an arm earns: a CUSUM of the residuals of its estimate."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from policy.native import Index, Pointer, Real, function, pointers
from policy.terms import Floats

_RUNS = 6
"""Of the run upwards and of that downwards, since each was last zero: its statistic, and the sum
and weight of what it was given."""
_follow = function(
    "watch_follow",
    Index, Index, Pointer, Pointer, Pointer, Real, Pointer, ctypes.POINTER(Real), result=Index,
)  # fmt: skip


class Alarm(NamedTuple):
    """A sudden change: seen at which of the observations given, and how far the level moved."""

    place: int
    shift: float


class Watch:
    """Two-sided CUSUM of standardised residuals (Page, 1954), with drift 0.5 and threshold 10.

    A shift by one standard deviation is seen after about twenty observations, a false alarm is
    expected once in 100,000. Residuals are clipped at two standard deviations, so that single
    failures do not add up to a change. What the residuals are of is set anew from time to time
    (:meth:`set_estimate`) and stays the same in between, so that many observations are followed
    at once.

    Parameters
    ----------
    width : int
        Number of features, the constant included.
    noise : float
        Standard deviation of the residuals that is assumed beforehand, as strong as five
        observations.
    """

    __slots__ = ("_deviation", "_noise", "_residual", "_runs")

    def __init__(self, width: int, *, noise: float) -> None:
        self._noise = noise
        # Of features and value: what a row is multiplied with to give its residual.
        self._residual: Floats = np.zeros(width + 1)
        self._residual[-1] = 1.0
        self._deviation = noise
        self._runs: Floats = np.zeros(_RUNS)

    def set_estimate(self, estimate: Floats, matrix: Floats) -> None:
        """Watch the residuals of an estimate, shape (width,).

        ``matrix`` are the moments that it was made from, shape (width + 1, width + 1).
        """
        self._residual = np.ones(len(estimate) + 1)
        self._residual[:-1] = -estimate
        squares = float(self._residual @ matrix @ self._residual) + 5.0 * self._noise**2
        level = math.sqrt(max(squares, 0.0) / (matrix.item(-2, -2) + 5.0))
        self._deviation = max(level, 0.05 * self._noise)

    def follow(self, blocks: Floats, weights: Floats) -> Alarm | None:
        """Follow observations in their order, up to the first alarm; that ends both runs.

        Parameters
        ----------
        blocks : ndarray, shape (k, n, width + 1)
            Rows of features and value. How many are given at once does not matter to a bit.
        weights : ndarray, shape (k, n)
        """
        shift = Real()
        place = _follow(
            weights.size, len(self._residual),
            *pointers(blocks, weights, self._residual),
            self._deviation, *pointers(self._runs), shift,
        )  # fmt: skip
        return None if place < 0 else Alarm(place, shift.value)

    def reset(self) -> None:
        """Begin anew, as if nothing had been seen."""
        self._runs[:] = 0.0

    def vector(self) -> Sequence[float]:
        """Return the state as :meth:`size` numbers."""
        estimate = (-self._residual[:-1]).tolist()
        return [self._deviation, *self._runs.tolist(), *estimate]

    @staticmethod
    def size(width: int) -> int:
        """Return how many numbers the state has."""
        return 1 + _RUNS + width

    def restore(self, vector: Floats) -> None:
        """Take what :meth:`vector` returned."""
        self._deviation = vector.item(0)
        self._runs[:] = vector[1 : 1 + _RUNS]
        self._residual[:-1] = -vector[1 + _RUNS :]
