"""Ridge estimates of all arms from their moments (:mod:`policy.moments`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from policy.centred import Centred
from policy.shrinkage import own_strengths
from policy.terms import Floats, Ints


def slope_strength(*, features: int, weight: float, squares: float, signal: float) -> float:
    """Return the ridge penalty of slopes, from the features' mean square.

    Its scale is rounded to a fourth of a power of two: it stays the same while outcomes come in,
    and with it the inverses of those arms that nothing was learned of.

    Parameters
    ----------
    features : int
        Their number.
    weight, squares : float
        Decayed numbers of observations, and sum of squares of all their features.
    signal : float
        Share of the value's variance that features are expected to explain, in (0, 1].
    """
    if features == 0 or weight <= 0.0 or squares <= 0.0:
        return features / signal
    scale = max(squares / (features * weight), 1e-12)
    return float(features / signal * 2.0 ** (round(4.0 * math.log2(scale)) / 4.0))


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
    """Solves for all arms, and keeps an arm's inverse until its moments change.

    Prompts that are hard or long are so for every model. An arm's slopes are therefore shrunk
    towards those of all arms together (each about its own mean), and the shared ones towards 0,
    by as many observations of one feature's mean square as make the features explain the share
    ``signal`` of the variance beforehand: ``(d - 1) / signal``. How far an arm's own slopes are
    shrunk follows from how much the arms were seen to differ (:mod:`policy.shrinkage`).

    Several quantities of the same arms (reward and length) are solved at once: most of the price
    of a solution is that of calling numpy.

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
        self._own: list[float] = []
        # Stacked: the moments, shape (g, k, d + 1, d + 1), their regularised inverses, and the
        # same as solutions have them.
        self._matrices: Floats = np.zeros((0, 0, 0, 0))
        self._inverses: Floats = np.zeros((0, 0, 0, 0))
        self._turned: Floats = np.zeros((0, 0, 0, 0))
        self._centred = Centred(0, 0, 0)

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
        changed = self._take(flat, len(moments))
        matrices, centred = self._matrices, self._centred
        width = matrices.shape[2] - 1
        last = width - 1
        weight, means = centred.weight, centred.means
        weights = weight.sum(axis=1)
        strengths = [
            slope_strength(features=last, weight=w, squares=squares, signal=signal)
            for w, squares, signal in zip(
                weights.tolist(), centred.squares.sum(axis=1).tolist(), self._signals, strict=True
            )
        ]
        shared = centred.products.sum(axis=1)
        shared.reshape(len(shared), -1)[:, :: last + 1] += np.array(strengths)[:, None]
        slopes = np.linalg.solve(shared, centred.crossed.sum(axis=1)[..., None])[..., 0]
        centre = (weight[:, None] @ means)[:, 0] / np.maximum(weights, 1e-12)[:, None]
        base = np.empty((*weight.shape, width))
        base[..., :last] = slopes[:, None]
        base[..., last] = prior - (centre[:, None] @ slopes[..., None])[:, 0]
        own = own_strengths(centred, slopes, expected=strengths, noises=self._noises)
        ridge = np.empty((len(own), width))
        ridge[:, :last], ridge[:, last] = np.array(own)[:, None], 1.0
        inverses = self._inverted(changed, ridge, own)
        self._given = flat
        moment = matrices[..., :width, width]
        theta = np.einsum("gkij,gkj->gki", inverses, moment + ridge[:, None] * base)
        fitted = np.einsum("gkij,gkj->gki", matrices[..., :width, :width], theta)
        squares = matrices[..., width, width] + (theta * (fitted - 2.0 * moment)).sum(axis=2)
        assumed = np.array([5.0 * noise**2 for noise in self._noises])[:, None]
        variance = (np.maximum(squares, 0.0) + assumed) / (weight + 5.0)
        return [
            Solution(theta=theta[group], inverses=self._turned[group], variance=variance[group])
            for group in range(len(moments))
        ]

    def _take(self, moments: Sequence[Floats], groups: int) -> tuple[Ints, Ints]:
        """Take those moments that were not given at the same place before; return their places."""
        if len(self._given) != len(moments):
            arms, width = len(moments) // groups, len(moments[0]) - 1
            self._own = []
            self._matrices = np.empty((groups, arms, width + 1, width + 1))
            self._inverses = np.empty((groups, arms, width, width))
            self._turned = np.empty((groups, width, arms, width))
            self._centred = Centred(groups, arms, width - 1)
            places = list(range(len(moments)))
        else:
            pairs = enumerate(zip(moments, self._given, strict=True))
            places = [place for place, (now, before) in pairs if now is not before]
        group, arm = self._places(places)
        if places:
            # Until all is solved; should that fail, everything is taken again.
            self._given = []
            changed = np.stack([moments[place] for place in places])
            self._matrices[group, arm] = changed
            self._centred.take(group, arm, changed)
        return group, arm

    def _places(self, places: Sequence[int]) -> tuple[Ints, Ints]:
        group, arm = np.divmod(np.array(places, np.int64), self._matrices.shape[1])
        return group, arm

    def _inverted(self, changed: tuple[Ints, Ints], ridge: Floats, own: list[float]) -> Floats:
        """Return the inverses; only of ``changed`` moments they are made anew at the same ridge."""
        groups, arms, width = self._matrices.shape[:3]
        if own != self._own:
            changed = self._places(range(groups * arms))
        group, arm = changed
        if len(group):
            grams = self._matrices[group, arm, :-1, :-1]
            grams.reshape(len(grams), -1)[:, ::width] += ridge[group]
            inverses = np.linalg.inv(grams)
            self._inverses[group, arm] = inverses
            self._turned[group, :, arm] = inverses
            self._own = own
        return self._inverses
