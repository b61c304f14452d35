"""Ridge estimates of all arms from their moments (:mod:`policy.moments`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from policy.ridge import Ridge
from policy.terms import Floats, Ints


@cache
def upper_triangle(size: int) -> tuple[Ints, Ints]:
    """Return the rows and columns of a square matrix on and above its diagonal.

    To find them takes longer than what is done with them.
    """
    rows, columns = np.triu_indices(size)
    return rows, columns


_MANY_ARMS = 32
"""From so many arms on a quadratic form is cheaper by the products of pairs of features."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Solution:
    """Ridge estimates of k arms.

    Parameters
    ----------
    theta : ndarray, shape (k, d)
    inverses : ndarray, shape (d, k, d)
        Of the regularised Gram matrices.
    variance : ndarray, shape (k,)
        Of the residuals.
    """

    theta: Floats
    inverses: Floats
    variance: Floats

    def predict(self, features: Floats) -> Floats:
        """Return the means, shape (n, k)."""
        means: Floats = features @ self.theta.T
        return means

    def deviation(self, features: Floats) -> Floats:
        """Return the posterior standard deviations of the means, shape (n, k)."""
        count, width = features.shape
        arms = len(self.theta)
        if arms < _MANY_ARMS:
            spread = features @ self.inverses.reshape(width, arms * width)
            widths = np.einsum("nkd,nd->nk", spread.reshape(count, arms, width), features)
        else:
            one, other, weights = self._pairs
            widths = (features[:, one] * features[:, other]) @ weights
        np.maximum(widths, 0.0, out=widths)
        widths *= self.variance
        result: Floats = np.sqrt(widths, out=widths)
        return result

    @cached_property
    def _pairs(self) -> tuple[Ints, Ints, Floats]:
        """Return each pair of features, and what its product weighs for each arm, shape (p, k)."""
        one, other = upper_triangle(self.inverses.shape[0])
        # The inverses are symmetric: what is not on the diagonal is there twice.
        weights = self.inverses[one, :, other] * np.where(one == other, 1.0, 2.0)[:, None]
        return one, other, weights


class Solver:
    """Solves for all arms (:mod:`policy.ridge`), and keeps what hangs on unchanged moments.

    Parameters
    ----------
    signals : sequence of g floats
        Share of each quantity's variance that features are expected to explain, in (0, 1].
    noises : sequence of g floats
        Standard deviations that are assumed beforehand, as strong as five observations.
    """

    def __init__(self, *, signals: Sequence[float], noises: Sequence[float]) -> None:
        self._signals = signals
        self._noises = noises
        self._given: list[Floats] = []
        self._groups: list[Ridge] = []

    def solve(self, moments: Sequence[Sequence[Floats]], *, prior: Floats) -> list[Solution]:
        """Return the ridge estimates of each quantity; they are good until the next call.

        Parameters
        ----------
        moments : g sequences of k ndarrays, shape (d + 1, d + 1)
            Decayed moments of features, constant and value; an array that was given before must
            not have been written to since.
        prior : ndarray, shape (g, k)
            Expected mean value of each arm, as strong as one observation.
        """
        flat = [matrix for matrices in moments for matrix in matrices]
        arms = len(moments[0])
        if len(self._given) != len(flat):
            features = len(flat[0]) - 2
            self._groups = [
                Ridge(arms, features, signal=signal, noise=noise)
                for signal, noise in zip(self._signals, self._noises, strict=True)
            ]
            self._given = []
        before: Sequence[Floats | None] = self._given or [None] * len(flat)
        for place, (now, known) in enumerate(zip(flat, before, strict=True)):
            if now is not known:
                self._groups[place // arms].take(place % arms, now)
        self._given = flat
        found = []
        for ridge, means in zip(self._groups, prior, strict=True):
            ridge.solve(means)
            found.append(
                Solution(theta=ridge.theta, inverses=ridge.inverses, variance=ridge.variance)
            )
        return found
