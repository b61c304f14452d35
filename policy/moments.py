"""Additive statistics of one arm, from which linear models are estimated (:mod:`policy.linear`).

Of every observation ``(x, y)`` only the decayed moments of ``z = (x, y)`` are kept: the matrix
``sum of weight * z z'``. Statistics of several partitions are merged by adding them, and the same
observations in the same order give bitwise the same state, however they were batched: a few of
them wait, in order, until a block is full, and the size of a block depends on nothing but how many
were seen.
"""

from __future__ import annotations

import numpy as np

from policy.linear import strength_of
from policy.terms import Floats

BLOCK = 16
"""Observations that are folded in at once; fewer at the start, so that nothing waits long."""
_CHECK_EVERY = 4 * BLOCK
_DRIFT, _ALARM, _WINSOR = 0.5, 10.0, 2.0
_KEPT_AFTER_CHANGE = 20.0
_HEAD = 10

_Run = tuple[float, float, float]
"""A CUSUM since it was last zero: its statistic, the sum and the number of what it was given."""
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
        "_forgetting",
        "_noise",
        "_pending",
        "_waiting",
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
        self._pending: Floats = np.zeros((BLOCK, width + 2))
        self._waiting = 0
        self._check: Floats = np.zeros(width)
        self._above: _Run = _QUIET
        self._below: _Run = _QUIET

    def add(self, features: Floats, value: float, weight: float = 1.0) -> bool:
        """Take in one observation; return whether :attr:`matrix` changed."""
        row = self._pending[self._waiting]
        row[:-2] = features
        row[-2] = value
        row[-1] = weight
        self._waiting += 1
        self.seen += 1
        if self._waiting < min(BLOCK, max(1, self.seen // 8)):
            return False
        self._fold()
        return True

    def total(self) -> Floats:
        """Return the moments with those observations that still wait, as other partitions see."""
        return self._with_pending() if self._waiting else self.matrix

    def _with_pending(self) -> Floats:
        rows = self._pending[: self._waiting]
        z = rows[:, :-1]
        ages = np.arange(self._waiting - 1, -1, -1)
        # By roots of the weights, so that the product is exactly symmetric.
        scaled = z * np.sqrt(rows[:, -1] * self._forgetting**ages)[:, None]
        kept: Floats = self.matrix * self._forgetting**self._waiting
        kept += scaled.T @ scaled
        return kept

    def _fold(self) -> None:
        changed = self._watch() if self.seen > 2 * BLOCK else 0.0
        if changed:
            # Before the block is added: that is of the new level already.
            self._shift(changed)
        self.matrix = self._with_pending()
        self._waiting = 0
        if changed or self.seen < 2 * _CHECK_EVERY or self.seen % _CHECK_EVERY < BLOCK:
            self._check = self._estimate()

    def _estimate(self) -> Floats:
        """Return a plain ridge estimate about the running mean, to watch residuals with."""
        width = len(self._check)
        prior = np.zeros(width)
        prior[-1] = self.matrix[-2, -1] / max(self.matrix[-2, -2], 1e-9)
        ridge = np.append(np.full(width - 1, strength_of(self.matrix[None], 0.1)), 1.0)
        gram = self.matrix[:-1, :-1] + np.diag(ridge)
        return np.asarray(np.linalg.solve(gram, self.matrix[:-1, -1] + ridge * prior), np.float64)

    def _watch(self) -> float:
        """Follow the residuals of the waiting block; return the shift if they raise an alarm."""
        rows = self._pending[: self._waiting]
        residuals = rows[:, -2] - rows[:, :-2] @ self._check
        z = np.append(-self._check, 1.0)
        weight = self.matrix[-2, -2]
        squares = float(z @ self.matrix @ z) + 5.0 * self._noise**2
        deviation = max(float(np.sqrt(max(squares, 0.0) / (weight + 5.0))), 0.05 * self._noise)
        units = residuals / deviation
        for unit, weight in zip(units.tolist(), rows[:, -1].tolist(), strict=True):
            self._above = _cusum(self._above, unit, weight)
            self._below = _cusum(self._below, -unit, weight)
            if self._above[0] > _ALARM or self._below[0] > _ALARM:
                self.dropped = self._below[0] > self._above[0]
                _, total, length = self._below if self.dropped else self._above
                self._above = self._below = _QUIET
                return deviation * (-total if self.dropped else total) / length
        return 0.0

    def _shift(self, shift: float) -> None:
        """Move the level of what was seen by ``shift`` and forget most of its weight."""
        matrix = self.matrix.copy()
        matrix[-1, -1] += 2.0 * shift * matrix[-2, -1] + shift * shift * matrix[-2, -2]
        matrix[:-1, -1] += shift * matrix[:-1, -2]
        matrix[-1, :-1] += shift * matrix[-2, :-1]
        self.matrix = matrix * min(1.0, _KEPT_AFTER_CHANGE / max(matrix[-2, -2], 1e-9))

    def vector(self) -> Floats:
        """Return the whole state as one vector; equal for equal states."""
        head = [
            len(self._check),
            self._waiting,
            self.seen,
            float(self.dropped),
            *self._above,
            *self._below,
        ]
        upper = self.matrix[np.triu_indices(len(self.matrix))]
        return np.concatenate(
            [head, self._check, upper, self._pending[: self._waiting].ravel()], dtype=np.float64
        )

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
        ends = np.cumsum([_HEAD, width, len(upper[0]), waiting * (width + 2)])
        if not 0 <= waiting < BLOCK or len(vector) < ends[-1]:
            raise ValueError(f"state of {width} features is cut short")
        self._waiting, self.seen, self.dropped = waiting, int(vector[2]), bool(vector[3])
        above, below = vector[4:7].tolist(), vector[7:10].tolist()
        self._above, self._below = (above[0], above[1], above[2]), (below[0], below[1], below[2])
        self._check = vector[ends[0] : ends[1]].copy()
        matrix = np.zeros((width + 1, width + 1))
        matrix[upper] = vector[ends[1] : ends[2]]
        self.matrix = matrix + np.triu(matrix, 1).T
        self._pending[:waiting] = vector[ends[2] : ends[3]].reshape(waiting, width + 2)
        return int(ends[-1])


def _cusum(run: _Run, unit: float, weight: float) -> _Run:
    statistic, total, length = run
    moved = statistic + weight * min(max(unit, -_WINSOR), _WINSOR) - _DRIFT
    return (moved, total + weight * unit, length + weight) if moved > 0.0 else _QUIET
