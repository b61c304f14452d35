"""Ridge estimates of all arms from their moments (:mod:`policy.moments`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from policy.shrinkage import own_strength
from policy.terms import Floats


def strength_of(products: Floats, signal: float) -> float:
    """Return the ridge penalty of slopes, from the features' mean square in these moments.

    Its scale is rounded to a fourth of a power of two: it stays the same while outcomes come in,
    and with it the inverses of those arms that nothing was learned of.
    """
    features = products.shape[1] - 2
    weight = float(products[:, -2, -2].sum())
    if features == 0 or weight <= 0.0:
        return float(features / signal)
    squares = float(np.einsum("kii->", products[:, :features, :features]))
    if squares <= 0.0:
        return float(features / signal)
    scale = max(squares / (features * weight), 1e-12)
    return float(features / signal * 2.0 ** (round(4.0 * math.log2(scale)) / 4.0))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
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
        spread = features @ self.inverses.reshape(width, arms * width)
        widths = np.einsum("nkd,nd->nk", spread.reshape(count, arms, width), features)
        result: Floats = np.sqrt(np.maximum(widths, 0.0) * self.variance)
        return result


class Solver:
    """Solves for all arms, and keeps an arm's inverse until its moments change.

    Prompts that are hard or long are so for every model. An arm's slopes are therefore shrunk
    towards those of all arms together (each about its own mean), and the shared ones towards 0,
    by as many observations of one feature's mean square as make the features explain the share
    ``signal`` of the variance beforehand: ``(d - 1) / signal``. How far an arm's own slopes are
    shrunk follows from how much the arms were seen to differ (:mod:`policy.shrinkage`).

    Parameters
    ----------
    signal : float
        Share of the variance that features are expected to explain, in (0, 1].
    noise : float
        Standard deviation that is assumed beforehand, as strong as five observations.
    """

    def __init__(self, *, signal: float, noise: float) -> None:
        self._signal = signal
        self._noise = noise
        self._given: list[Floats] = []
        self._own = math.nan
        # Stacked: the moments, their regularised inverses, and the same with the arms in between.
        self._matrices: Floats = np.zeros((0, 0, 0))
        self._inverses: Floats = np.zeros((0, 0, 0))
        self._turned: Floats = np.zeros((0, 0, 0))

    def solve(self, moments: Sequence[Floats], *, prior: Floats) -> Solution:
        """Return the ridge estimates; they are good until the next call.

        Parameters
        ----------
        moments : sequence of k ndarrays, shape (d + 1, d + 1)
            Decayed moments of features, constant and value; an array that was given before must
            not have been written to since.
        prior : ndarray, shape (k,)
            Expected mean value of each arm, as strong as one observation.
        """
        changed = self._take(moments)
        matrices = self._matrices
        width = matrices.shape[1] - 1
        last = width - 1
        weight = matrices[:, last, last]
        safe = np.maximum(weight, 1e-12)
        means = matrices[:, last, :last] / safe[:, None]
        strength = strength_of(matrices, self._signal)
        # About each arm's own mean: sum of products less weight times product of means.
        shared = matrices[:, :last, :last].sum(axis=0) - (means * weight[:, None]).T @ means
        crossed = matrices[:, :last, width].sum(axis=0) - matrices[:, last, width] @ means
        shared.reshape(-1)[:: last + 1] += strength
        slopes = np.linalg.solve(shared, crossed)
        centre = (weight @ means) / max(float(weight.sum()), 1e-12)
        base = np.empty((len(weight), width))
        base[:, :last] = slopes
        base[:, last] = prior - centre @ slopes
        own = own_strength(matrices, slopes, expected=strength, noise=self._noise)
        ridge = np.empty(width)
        ridge[:last], ridge[last] = own, 1.0
        inverses = self._inverted(changed, ridge)
        # Only now: had something failed before, all would have to be inverted again.
        self._given = list(moments)
        moment = matrices[:, :width, width]
        theta = np.einsum("kij,kj->ki", inverses, moment + ridge * base)
        fitted = np.einsum("kij,kj->ki", matrices[:, :width, :width], theta)
        squares = matrices[:, width, width] + (theta * (fitted - 2.0 * moment)).sum(axis=1)
        variance = (np.maximum(squares, 0.0) + 5.0 * self._noise**2) / (weight + 5.0)
        return Solution(theta=theta, inverses=self._turned, variance=variance)

    def _take(self, moments: Sequence[Floats]) -> list[int]:
        """Stack the moments; return those that were not given at the same place before."""
        given = self._given
        if len(given) != len(moments):
            self._given, self._own = [], math.nan
            self._matrices = np.stack(moments)
            arms, width = len(moments), self._matrices.shape[1] - 1
            self._inverses = np.empty((arms, width, width))
            self._turned = np.empty((width, arms, width))
            return list(range(arms))
        pairs = enumerate(zip(moments, given, strict=True))
        changed = [arm for arm, (now, before) in pairs if now is not before]
        for arm in changed:
            self._matrices[arm] = moments[arm]
        return changed

    def _inverted(self, changed: Sequence[int], ridge: Floats) -> Floats:
        """Return the inverses; only of ``changed`` arms they are made anew at the same ridge."""
        own = float(ridge[0])
        if own != self._own:
            changed = range(len(self._matrices))
        if changed:
            arms = np.array(changed)
            grams = self._matrices[arms, :-1, :-1]
            grams.reshape(len(arms), -1)[:, :: len(ridge) + 1] += ridge
            inverses = np.linalg.inv(grams)
            self._inverses[arms] = inverses
            self._turned[:, arms] = inverses.transpose(1, 0, 2)
            self._own = own
        return self._inverses
