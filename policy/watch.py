"""A watch for sudden changes of what an arm earns: a CUSUM of the residuals of its estimate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import NamedTuple

import numpy as np

from policy.terms import Floats

_DRIFT, _ALARM, _WINSOR = 0.5, 10.0, 2.0
_RUN = 3

_Run = tuple[float, float, float]
"""A CUSUM since it was last zero: its statistic, and the sum and weight of what it was given."""
_QUIET: _Run = (0.0, 0.0, 0.0)


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

    __slots__ = ("_above", "_below", "_deviation", "_noise", "_residual")

    def __init__(self, width: int, *, noise: float) -> None:
        self._noise = noise
        # Of features and value: what a row is multiplied with to give its residual.
        self._residual: Floats = np.zeros(width + 1)
        self._residual[-1] = 1.0
        self._deviation = noise
        self._above: _Run = _QUIET
        self._below: _Run = _QUIET

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
            Rows of features and value. Each block is multiplied by itself: how many are given at
            once does not matter to a bit.
        weights : ndarray, shape (k, n)
        """
        units = (blocks @ self._residual) * (weights / self._deviation)
        bounds = _WINSOR * weights
        bounded = np.minimum(np.maximum(units, -bounds), bounds).ravel().tolist()
        above, below = self._above[0], self._below[0]
        # Where each run began; what is carried from before counts from its own start.
        rise = fall = -1
        for place, value in enumerate(bounded):
            above += value - _DRIFT
            if above <= 0.0:
                above, rise = 0.0, place + 1
            below -= value + _DRIFT
            if below <= 0.0:
                below, fall = 0.0, place + 1
            if above > _ALARM or below > _ALARM:
                before, start = (self._below, fall) if below > above else (self._above, rise)
                _, total, length = _run(0.0, before, start, units, weights, end=place + 1)
                self.reset()
                return Alarm(place, self._deviation * total / length)
        self._above = _run(above, self._above, rise, units, weights, end=len(bounded))
        self._below = _run(below, self._below, fall, units, weights, end=len(bounded))
        return None

    def reset(self) -> None:
        """Begin anew, as if nothing had been seen."""
        self._above = self._below = _QUIET

    def vector(self) -> Sequence[float]:
        """Return the state as :meth:`size` numbers."""
        estimate = (-self._residual[:-1]).tolist()
        return [self._deviation, *self._above, *self._below, *estimate]

    @staticmethod
    def size(width: int) -> int:
        """Return how many numbers the state has."""
        return 1 + 2 * _RUN + width

    def restore(self, vector: Floats) -> None:
        """Take what :meth:`vector` returned."""
        head: list[float] = vector[: 1 + 2 * _RUN].tolist()
        self._deviation = head[0]
        self._above, self._below = (head[1], head[2], head[3]), (head[4], head[5], head[6])
        self._residual[:-1] = -vector[len(head) :]


def _run(
    statistic: float, before: _Run, start: int, units: Floats, weights: Floats, *, end: int
) -> _Run:
    """Return a run that began at ``start``, or before it if negative.

    Added one after the other, as they would be in several calls.
    """
    if start == end:
        return statistic, 0.0, 0.0
    total, length = (0.0, 0.0) if start >= 0 else before[1:]
    part = slice(max(start, 0), end)
    total = reduce(add, units.ravel()[part].tolist(), total)
    return statistic, total, reduce(add, weights.ravel()[part].tolist(), length)
