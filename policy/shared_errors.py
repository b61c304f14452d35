"""What estimates were off by for requests like these, whichever arm answered them.

Prompts that are hard or long are so for every arm. Where a stream moves on to other prompts than
the history's, an arm's own neighbours come to know it one outcome at a time; what the arms' errors
have in common is known as many times sooner as there are arms. How far common errors foretell the
next one is judged from the stream, so that they count little where nothing has moved.
"""

from __future__ import annotations

import numpy as np

from policy.recorded import directions
from policy.terms import Floats, Ints

NEIGHBOURS = 10
"""Nearest served requests whose errors are averaged; one more without error is added to them."""
MEMORY = 256.0
"""Served requests over which it is judged how far errors foretell."""
_LEAST_USD = 1e-12
_REWARD, _COST = 0, 1


class SharedErrors:
    """Errors of a stream's served requests: of the reward, and of the logarithm of the cost.

    Parameters
    ----------
    features : ndarray, shape (n, d)
        Of the stream, in its order.

    Notes
    -----
    An estimate ``m`` becomes ``m + b s``: ``s`` is the mean error of the nearest served requests,
    and ``b`` in [0, 1] the ridge regression of errors on what was foretold of them, with the
    variance of the errors as penalty, that is with the prior ``N(0, 1)``. The idea is that of bias
    correction in matching by nearest neighbours [1]_.

    References
    ----------
    .. [1] Abadie, Imbens, Bias-corrected matching estimators for average treatment effects,
       Journal of Business & Economic Statistics 29 (2011).

    Examples
    --------
    An arm answered ten alike requests worse than was estimated; so would the others, it seems.

    >>> errors = SharedErrors(np.ones((11, 2)))
    >>> for row in range(10):
    ...     errors.learn(row, reward=(0.9, 0.4), cost_usd=(1e-3, 2e-3))
    >>> reward, cost = np.array([[0.9, 0.8]]), np.array([[1e-3, 1e-2]])
    >>> reward, cost = errors.correct(np.array([10]), reward, cost, seen=10)
    >>> reward.round(2), (cost * 1e3).round(2)
    (array([[0.45, 0.35]]), array([[ 1.88, 18.78]]))
    """

    def __init__(self, features: Floats) -> None:
        self._vectors = directions(features)
        self._errors: Floats = np.full((len(features), 2), np.nan)
        self._count = 0.0
        self._squares = np.zeros(2)
        self._foretold_squares = np.zeros(2)
        self._products = np.zeros(2)

    def learn(
        self, row: int, *, reward: tuple[float, float], cost_usd: tuple[float, float]
    ) -> None:
        """Note what was estimated of a served request, and what it brought, in the stream's order.

        Both are pairs of the estimate without correction and the truth.
        """
        least = [max(usd, _LEAST_USD) for usd in cost_usd]
        error = np.array([reward[1] - reward[0], np.log(least[1] / least[0])])
        foretold = self._foretold(np.array([row]), seen=row)[0]
        kept = 1.0 - 1.0 / MEMORY
        self._count = kept * self._count + 1.0
        self._squares = kept * self._squares + error**2
        self._foretold_squares = kept * self._foretold_squares + foretold**2
        self._products = kept * self._products + foretold * error
        self._errors[row] = error

    def correct(
        self, rows: Ints, reward: Floats, cost_usd: Floats, *, seen: int
    ) -> tuple[Floats, Floats]:
        """Return estimates, each (m, k), less what is foretold of their errors.

        Only requests before ``seen`` are looked at, and none at itself.
        """
        shift = self._trust() * self._foretold(rows, seen=seen)
        corrected = np.clip(reward + shift[:, _REWARD, None], 0.0, 1.0)
        return corrected, cost_usd * np.exp(shift[:, _COST, None])

    def _trust(self) -> Floats:
        # One error of size 1 beforehand: a regression on nothing has no variance.
        variance = (self._squares + 1.0) / (self._count + 1.0)
        trust: Floats = np.clip(self._products / (self._foretold_squares + variance), 0.0, 1.0)
        return trust

    def _foretold(self, rows: Ints, *, seen: int) -> Floats:
        served = np.flatnonzero(~np.isnan(self._errors[:seen, _REWARD]))
        if len(served) == 0:
            return np.zeros((len(rows), 2))
        near = self._vectors[rows] @ self._vectors[served].T
        near[rows[:, None] == served] = -np.inf
        count = min(NEIGHBOURS, len(served))
        top = np.argpartition(-near, count - 1, axis=1)[:, :count]
        other = np.isfinite(np.take_along_axis(near, top, axis=1))
        summed = np.where(other[:, :, None], self._errors[served][top], 0.0).sum(axis=1)
        mean: Floats = summed / (other.sum(axis=1) + 1.0)[:, None]
        return mean
