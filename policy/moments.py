"""Additive statistics of one arm, from which linear models are estimated (:mod:`policy.linear`).

Of every observation ``(x, y)`` only the decayed moments of ``z = (x, y)`` are kept: the matrix
``sum of weight * z z'``. Statistics of several partitions are merged by adding them, and the same
observations in the same order give bitwise the same state, however they were batched: a few of
them wait, in order, until a block is full, and the size of a block depends on nothing but how many
were seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from policy.linear import strength_of
from policy.terms import Floats

BLOCK, BLOCK_LATER = 16, 32
"""Observations that are folded in at once; fewer at the start, so that nothing waits long, and more
where a model has seen so much that it does not matter."""
_LATER = 4_096
_CHECK_EVERY = 128
_DRIFT, _ALARM, _WINSOR = 0.5, 10.0, 2.0
_KEPT_AFTER_CHANGE = 20.0
_HEAD = 10

_Run = tuple[float, float, float]
"""A CUSUM since it was last zero: its statistic, and the sum and weight of what it was given."""
_QUIET: _Run = (0.0, 0.0, 0.0)


class Moments:
    """Decayed second moments of one arm's observations, and a watch for sudden changes.

    Parameters
    ----------
    width : int
        Number of features, the constant (last) included.
    forgetting : float
        Factor per observation, in (0, 1]; 0.9995 remembers about the last 2,000.
    noise : float
        Standard deviation of the residuals that is assumed before any was seen.

    Notes
    -----
    The watch is a two-sided CUSUM of standardised residuals (Page, 1954) with drift 0.5 and
    threshold 10: a shift by one standard deviation is seen after about twenty observations, a
    false alarm is expected once in 100,000. On an alarm the level moves by the mean residual of
    the run, and all but the weight of twenty observations is forgotten. Residuals are clipped at
    two standard deviations, so that single failures do not add up to a change.
    """

    __slots__ = (
        "_above",
        "_below",
        "_check",
        "_count",
        "_decay",
        "_forgetting",
        "_noise",
        "_pending",
        "_residual",
        "_weights",
        "dropped",
        "matrix",
        "seen",
    )

    def __init__(self, width: int, *, forgetting: float, noise: float) -> None:
        self._forgetting = forgetting
        self._noise = noise
        self.matrix: Floats = np.zeros((width + 1, width + 1))
        self.seen = 0
        """Observations ever taken in."""
        self.dropped = False
        """Whether the last sudden change was downwards."""
        # What waits to be folded in: so many rows of features and value, and their weights.
        self._count = 0
        self._pending: Floats = np.zeros((BLOCK_LATER, width + 1))
        self._weights: Floats = np.zeros(BLOCK_LATER)
        # Square roots of the decay of the last observations, the latest being 1.
        self._decay: Floats = np.sqrt(forgetting ** np.arange(BLOCK_LATER - 1.0, -1.0, -1.0))
        self._check: Floats = np.zeros(width)
        # The same as what makes residuals: of features and value.
        self._residual: Floats = _residual_of(self._check)
        self._above: _Run = _QUIET
        self._below: _Run = _QUIET

    def add(self, features: Floats, values: Sequence[float], weights: Sequence[float]) -> bool:
        """Take in observations, in their order; return whether :attr:`matrix` changed.

        ``features`` has shape (n, width); how observations are divided into calls does not matter.
        """
        start, changed = 0, False
        while start < len(values):
            count = self._count
            wanted = self._until_full(count)
            end = min(start + wanted, len(values))
            place = slice(count, count + end - start)
            rows = self._pending[place]
            rows[:, :-1] = features[start:end]
            rows[:, -1] = values[start:end]
            self._weights[place] = weights[start:end]
            self._count = place.stop
            self.seen += end - start
            if end - start == wanted:
                self._fold()
                changed = True
            start = end
        return changed

    def _until_full(self, count: int) -> int:
        """Return how many observations are wanted until the waiting ones are folded in."""
        wanted, block = 1, BLOCK if self.seen < _LATER else BLOCK_LATER
        if self.seen >= 8 * block:
            return max(block - count, 1)
        while count + wanted < block and count + wanted < (self.seen + wanted) // 8:
            wanted += 1
        return wanted

    def total(self) -> Floats:
        """Return the moments with those observations that still wait, as other partitions see."""
        return self._with_pending() if self._count else self.matrix

    def _with_pending(self) -> Floats:
        count = self._count
        # By roots of the weights, so that the product is exactly symmetric.
        roots = np.sqrt(self._weights[:count]) * self._decay[BLOCK_LATER - count :]
        scaled = self._pending[:count] * roots[:, None]
        kept: Floats = self.matrix * self._forgetting**count
        kept += scaled.T @ scaled
        return kept

    def _fold(self) -> None:
        changed = self._watch() if self.seen > 32 else 0.0
        if changed:
            # Before the block is added: that is of the new level already.
            self._shift(changed)
        self.matrix = self._with_pending()
        self._count = 0
        if changed or self.seen < 2 * _CHECK_EVERY or self.seen % _CHECK_EVERY < BLOCK_LATER:
            self._set_check(self._estimate())

    def _set_check(self, estimate: Floats) -> None:
        self._check, self._residual = estimate, _residual_of(estimate)

    def _estimate(self) -> Floats:
        """Return a plain ridge estimate about the running mean, to watch residuals with."""
        matrix, width = self.matrix, len(self._check)
        ridge = np.full(width, strength_of(matrix[None], 0.1))
        ridge[-1] = 1.0
        gram = matrix[:-1, :-1].copy()
        gram.reshape(-1)[:: width + 1] += ridge
        moment = matrix[:-1, -1].copy()
        moment[-1] += matrix.item(-2, -1) / max(matrix.item(-2, -2), 1e-9)
        return np.asarray(np.linalg.solve(gram, moment), np.float64)

    def _watch(self) -> float:
        """Follow the residuals of the waiting block; return the shift if they raise an alarm."""
        count, z = self._count, self._residual
        rows, weights = self._pending[:count], self._weights[:count]
        squares = float(z @ self.matrix @ z) + 5.0 * self._noise**2
        level = math.sqrt(max(squares, 0.0) / (self.matrix.item(-2, -2) + 5.0))
        deviation = max(level, 0.05 * self._noise)
        residuals = rows[:, -1] - rows[:, :-1] @ self._check
        units = residuals * (weights / deviation)
        bounds = _WINSOR * weights
        bounded = np.minimum(np.maximum(units, -bounds), bounds).tolist()
        above, below = self._above[0], self._below[0]
        # Where each run began; what is carried from the former block counts from its own start.
        rise = fall = -1
        for place, value in enumerate(bounded):
            above += value - _DRIFT
            if above <= 0.0:
                above, rise = 0.0, place + 1
            below -= value + _DRIFT
            if below <= 0.0:
                below, fall = 0.0, place + 1
            if above > _ALARM or below > _ALARM:
                self.dropped = below > above
                run = (self._below, fall) if self.dropped else (self._above, rise)
                _, total, length = self._run(0.0, *run, units, place + 1)
                self._above = self._below = _QUIET
                return deviation * total / length
        self._above = self._run(above, self._above, rise, units, count)
        self._below = self._run(below, self._below, fall, units, count)
        return 0.0

    def _run(self, statistic: float, before: _Run, start: int, units: Floats, end: int) -> _Run:
        """Return a CUSUM's run that began at ``start`` of the block, or before it if negative."""
        total, length = (0.0, 0.0) if start >= 0 else before[1:]
        part = slice(max(start, 0), end)
        weights = self._weights[part].tolist()
        return statistic, total + sum(units[part].tolist()), length + sum(weights)

    def _shift(self, shift: float) -> None:
        """Move the level of what was seen by ``shift`` and forget most of its weight."""
        matrix = self.matrix.copy()
        matrix[-1, -1] += 2.0 * shift * matrix[-2, -1] + shift * shift * matrix[-2, -2]
        matrix[:-1, -1] += shift * matrix[:-1, -2]
        matrix[-1, :-1] += shift * matrix[-2, :-1]
        self.matrix = matrix * min(1.0, _KEPT_AFTER_CHANGE / max(matrix[-2, -2], 1e-9))

    def forget_features(self) -> None:
        """Keep the mean and the variance of the values, as if little had been seen of them.

        What the features had to do with them is forgotten; so is what still waits.
        """
        kept = self.total()[-2:, -2:]
        self._count = 0
        self.matrix = np.zeros_like(self.matrix)
        self.matrix[-2:, -2:] = kept * min(1.0, _KEPT_AFTER_CHANGE / max(kept[0, 0], 1e-9))
        check = np.zeros_like(self._check)
        check[-1] = self.matrix[-2, -1] / max(self.matrix[-2, -2], 1e-9)
        self._set_check(check)
        self._above = self._below = _QUIET

    def vector(self) -> Floats:
        """Return the whole state as one vector; equal for equal states."""
        count = self._count
        head = [
            len(self._check),
            count,
            self.seen,
            float(self.dropped),
            *self._above,
            *self._below,
        ]
        upper = self.matrix[np.triu_indices(len(self.matrix))]
        rows = self._pending[:count]
        values, weights = rows[:, -1], self._weights[:count]
        return np.concatenate([head, self._check, upper, rows[:, :-1].ravel(), values, weights])

    def restore(self, vector: Floats) -> int:
        """Take the state from the start of ``vector``; return how many numbers it took.

        Raises
        ------
        ValueError
            If it is the state of another number of features.
        """
        width = len(self._check)
        if len(vector) < _HEAD or vector[0] != width:
            raise ValueError(f"state is not of {width} features")
        waiting = int(vector[1])
        upper = np.triu_indices(width + 1)
        ends = np.cumsum([_HEAD, width, len(upper[0]), waiting * width, waiting, waiting])
        if not 0 <= waiting < BLOCK_LATER or len(vector) < ends[-1]:
            raise ValueError(f"state of {width} features is cut short")
        self.seen, self.dropped = int(vector[2]), bool(vector[3])
        above, below = vector[4:7].tolist(), vector[7:10].tolist()
        self._above, self._below = (above[0], above[1], above[2]), (below[0], below[1], below[2])
        self._set_check(vector[ends[0] : ends[1]].copy())
        matrix = np.zeros((width + 1, width + 1))
        matrix[upper] = vector[ends[1] : ends[2]]
        self.matrix = matrix + np.triu(matrix, 1).T
        self._count = waiting
        self._pending[:waiting, :-1] = vector[ends[2] : ends[3]].reshape(waiting, width)
        self._pending[:waiting, -1] = vector[ends[3] : ends[4]]
        self._weights[:waiting] = vector[ends[4] : ends[5]]
        return int(ends[-1])


def _residual_of(estimate: Floats) -> Floats:
    """Return what a row of features and value is multiplied with to give its residual."""
    residual: Floats = np.ones(len(estimate) + 1)
    residual[:-1] = -estimate
    return residual
