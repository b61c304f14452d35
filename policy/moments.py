"""Additive statistics of one arm, from which linear models are estimated (:mod:`policy.linear`).

Of every observation ``(x, y)`` only the decayed moments of ``z = (x, y)`` are kept: the matrix
``sum of weight * z z'``. Statistics of several partitions are merged by adding them, and the same
observations in the same order give bitwise the same state, however they were batched: a few of
them wait, in order, until a block is full, and the size of a block depends on nothing but how many
were seen.
"""

from __future__ import annotations

import numpy as np

from policy.linear import upper_triangle
from policy.native import Index, Pointer, Real, function, pointers
from policy.ridge import plain_estimate
from policy.terms import Floats
from policy.watch import Watch

BLOCK, BLOCK_LATER = 8, 32
"""Observations that are folded in at once; few where each tells much and a change is to be noticed
soon, fewer yet at the start, and more where a model has seen so much that it does not matter."""
_LATER = 4_096
_CHECK_EVERY = 256
"""Observations between two estimates to watch; up to so many each block brings another."""
_WATCHED_FROM = 17
"""Observations that are folded in before the watch begins."""
_KEPT_AFTER_CHANGE = 20.0
_HEAD = 4
_TILE = 8
"""Columns that ``policy/native/moments.c`` sums together."""
_moments_fold = function(
    "moments_fold", *[Index] * 4, *[Pointer] * 3, Real, Pointer, Pointer, result=None
)


class Moments:
    """Decayed second moments of one arm's observations, and a watch for sudden changes.

    On an alarm (:mod:`policy.watch`) the level moves by the mean residual of the run, and all but
    the weight of twenty observations is forgotten.

    Parameters
    ----------
    width : int
        Number of features, the constant (last) included.
    forgetting : float
        Factor per observation, in (0, 1]; 0.9995 remembers about the last 2,000.
    noise : float
        Standard deviation of the residuals that is assumed before any was seen.
    """

    __slots__ = (
        "_count",
        "_decay",
        "_forgetting",
        "_pending",
        "_watch",
        "_weights",
        "dropped",
        "matrix",
        "seen",
    )

    def __init__(self, width: int, *, forgetting: float, noise: float) -> None:
        self._forgetting = forgetting
        self.matrix: Floats = np.zeros((width + 1, width + 1))
        """Of what is folded in; another array after each change."""
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
        self._watch = Watch(width, noise=noise)

    def add(self, features: Floats, values: Floats, weights: Floats) -> bool:
        """Take in observations, in their order; return whether :attr:`matrix` changed.

        How observations are divided into calls does not matter.

        Parameters
        ----------
        features : ndarray, shape (n, width)
        values, weights : ndarray, shape (n,)
        """
        before, count = self._count, self._count + len(values)
        folded = self.seen - before
        self.seen += len(values)
        if count < _block_at(folded):
            self._pending[before:count, :-1] = features
            self._pending[before:count, -1] = values
            self._weights[before:count] = weights
            self._count = count
            return False
        rows = np.empty((count, self._pending.shape[1]))
        rows[:before], rows[before:, :-1], rows[before:, -1] = (
            self._pending[:before], features, values,
        )  # fmt: skip
        weights = np.concatenate([self._weights[:before], weights])
        start = 0
        while count - start >= (block := _block_at(folded + start)):
            blocks = min((count - start) // block, _blocks_alike(folded + start, block))
            end = start + blocks * block
            start += block * self._take(
                rows[start:end].reshape(blocks, block, -1),
                weights[start:end].reshape(blocks, block),
                folded + start,
            )
        self._count = count - start
        self._pending[: self._count], self._weights[: self._count] = rows[start:], weights[start:]
        return True

    def _take(self, blocks: Floats, weights: Floats, folded: int) -> int:
        """Fold in blocks up to the first in which there is an alarm; return how many."""
        size = blocks.shape[1]
        alarm = self._watch.follow(blocks, weights) if folded >= _WATCHED_FROM else None
        if alarm is None:
            taken = len(blocks)
            self._fold(blocks, weights)
        else:
            steady = alarm.place // size
            taken = steady + 1
            self._fold(blocks[:steady], weights[:steady])
            # Before its block is added: that is of the new level already.
            self._shift(alarm.shift)
            self._fold(blocks[steady:taken], weights[steady:taken])
        folded += taken * size
        if alarm or folded < _CHECK_EVERY or folded % _CHECK_EVERY < size:
            self._watch.set_estimate(self._estimate(), self.matrix)
        return taken

    def _fold(self, blocks: Floats, weights: Floats) -> None:
        self.matrix = self._folded(blocks, weights)

    def _folded(self, blocks: Floats, weights: Floats) -> Floats:
        """Return the matrix with blocks of observations, shape (k, n, width + 1), added to it."""
        count, size, width = blocks.shape
        stride = -(-width // _TILE) * _TILE
        matrix = self.matrix.copy()
        _moments_fold(
            count, size, width, stride,
            *pointers(blocks, weights, self._decay[BLOCK_LATER - size :]),
            self._forgetting**size, *pointers(matrix, np.empty(size * stride)),
        )  # fmt: skip
        return matrix

    def total(self) -> Floats:
        """Return the moments with those observations that still wait, as other partitions see."""
        count = self._count
        if not count:
            return self.matrix
        return self._folded(self._pending[None, :count], self._weights[None, :count])

    def _estimate(self) -> Floats:
        """Return a plain ridge estimate about the running mean, to watch residuals with."""
        return plain_estimate(self.matrix, signal=0.1)

    def _shift(self, shift: float) -> None:
        """Move the level of what was seen by ``shift`` and forget most of its weight."""
        self.dropped = shift < 0.0
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
        estimate = np.zeros(len(self.matrix) - 1)
        estimate[-1] = self.matrix[-2, -1] / max(self.matrix[-2, -2], 1e-9)
        self._watch.reset()
        self._watch.set_estimate(estimate, self.matrix)

    def vector(self) -> Floats:
        """Return the whole state as one vector; equal for equal states."""
        count = self._count
        head = [len(self.matrix) - 1, count, self.seen, float(self.dropped)]
        upper = self.matrix[upper_triangle(len(self.matrix))]
        rows = self._pending[:count]
        values, weights = rows[:, -1], self._weights[:count]
        watch = self._watch.vector()
        return np.concatenate([head, watch, upper, rows[:, :-1].ravel(), values, weights])

    def restore(self, vector: Floats) -> int:
        """Take the state from the start of ``vector``; return how many numbers it took.

        Raises
        ------
        ValueError
            If it is the state of another number of features.
        """
        width = len(self.matrix) - 1
        if len(vector) < _HEAD or vector[0] != width:
            raise ValueError(f"state is not of {width} features")
        waiting = int(vector[1])
        upper = upper_triangle(width + 1)
        sizes = [_HEAD, Watch.size(width), len(upper[0]), waiting * width, waiting, waiting]
        ends = np.cumsum(sizes)
        if not 0 <= waiting < BLOCK_LATER or len(vector) < ends[-1]:
            raise ValueError(f"state of {width} features is cut short")
        self.seen, self.dropped = int(vector[2]), bool(vector[3])
        self._watch.restore(vector[ends[0] : ends[1]])
        matrix = np.zeros((width + 1, width + 1))
        matrix[upper] = vector[ends[1] : ends[2]]
        self.matrix = matrix + np.triu(matrix, 1).T
        self._count = waiting
        self._pending[:waiting, :-1] = vector[ends[2] : ends[3]].reshape(waiting, width)
        self._pending[:waiting, -1] = vector[ends[3] : ends[4]]
        self._weights[:waiting] = vector[ends[4] : ends[5]]
        return int(ends[-1])


def _block_at(folded: int) -> int:
    """Return how many observations are folded in together after so many."""
    return BLOCK_LATER if folded >= _LATER else min(BLOCK, max(1, folded // 8))


def _blocks_alike(folded: int, block: int) -> int:
    """Return after how many blocks of this size the watch gets another estimate."""
    if folded < _CHECK_EVERY:
        return 1
    return -(-(_CHECK_EVERY - folded % _CHECK_EVERY) // block)
