"""Ridge estimates of the arms' reward or length, all at once (``policy/native/ridge.c``).

Prompts that are hard or long are so for every model. An arm's slopes are therefore shrunk towards
those of all arms together (each about its own mean), and the shared ones towards 0, by as many
observations of one feature's mean square as make the features explain the share ``signal`` of the
variance beforehand: ``(d - 1) / signal``.

How far an arm's own slopes are shrunk follows from how much the arms were seen to differ. Where
models differ little in what they are good at, slopes of their own are mostly noise, and taking the
best of many noisy estimates is worse than not looking at the request at all; where they do differ,
shrinking loses what there is to win. How much they differ is a property of the traffic and of the
arms, so it is estimated (empirical Bayes, :func:`own_strength`) instead of being a setting.
"""

from __future__ import annotations

import numpy as np

from policy.native import Index, Pointer, Real, function, pointers
from policy.terms import Floats

_SUMS = 5
_centre = function("ridge_centre", Index, *[Pointer] * 5, result=None)
_own_strength = function(
    "ridge_own_strength", Index, Index, *[Pointer] * 4, Real, Real, Pointer, result=Real
)
_plain = function("ridge_plain", Index, Pointer, Real, Pointer, Pointer, result=None)
_shared = function("ridge_shared", Index, Index, *[Pointer] * 7, Real, Real, Pointer, result=Real)
_inverses = function(
    "ridge_inverses", Index, Index, Pointer, Pointer, Real, Pointer, Pointer, result=None
)
_estimates = function(
    "ridge_estimates", Index, Index, *[Pointer] * 4, Real, Real, *[Pointer] * 4, result=None
)
_LARGE = 96
"""From so many features on LAPACK, which works by blocks, inverts faster than a plain loop."""


def plain_estimate(moments: Floats, *, signal: float) -> Floats:
    """Return a plain ridge estimate of one arm about its running mean, shape (d + 1,).

    ``moments``, shape (d + 2, d + 2), are of features, constant and value. Slopes are shrunk
    towards 0 by their expected penalty, ``d / signal`` times the features' mean square. Its scale
    is rounded to a fourth of a power of two, here and for all arms: it stays the same while
    outcomes come in, and with it the inverses of those arms that nothing was learned of.
    """
    width = len(moments) - 1
    theta = np.empty(width)
    scratch = np.empty(width * (width + 1))
    _plain(width - 1, *pointers(moments), signal, *pointers(theta, scratch))
    return theta


class Centred:
    """What estimates need of the moments of k arms, about each arm's own means.

    Attributes
    ----------
    products : ndarray, shape (k, d, d)
        Of features about their means.
    crossed : ndarray, shape (k, d)
        Products of features and value about their means.
    means : ndarray, shape (k, d)
        Of the features.
    sums : ndarray, shape (k, 5)
        Decayed number of observations; sum of squares of all features, about 0; sum of squares of
        the value about its mean; trace of ``products``; sum of their squares.
    """

    __slots__ = ("crossed", "means", "products", "sums")

    def __init__(self, arms: int, features: int) -> None:
        self.products: Floats = np.zeros((arms, features, features))
        self.crossed: Floats = np.zeros((arms, features))
        self.means: Floats = np.zeros((arms, features))
        self.sums: Floats = np.zeros((arms, _SUMS))

    @classmethod
    def of(cls, moments: Floats) -> Centred:
        """Return those of moments of shape (k, d + 2, d + 2), rows features, constant, value."""
        arms, features = len(moments), moments.shape[1] - 2
        centred = cls(arms, features)
        for arm in range(arms):
            parts = (part[arm] for part in centred.arrays())
            _centre(features, *pointers(np.ascontiguousarray(moments[arm]), *parts))
        return centred

    def arrays(self) -> tuple[Floats, Floats, Floats, Floats]:
        """Return the arrays, in the order of the C functions' parameters."""
        return self.products, self.crossed, self.means, self.sums


def own_strength(centred: Centred, slopes: Floats, *, expected: float, noise: float) -> float:
    """Return the ridge penalty that draws each arm's slopes to the shared ones.

    Parameters
    ----------
    centred : Centred
        Moments of the arms.
    slopes : ndarray, shape (d,)
        Shared by the arms.
    expected : float
        The penalty that is expected beforehand.
    noise : float
        Standard deviation that is assumed beforehand, as strong as five observations.

    Returns
    -------
    float
        Rounded to half a power of two, so that it stays the same while outcomes come in.

    Notes
    -----
    With the centred moments ``G`` of an arm's features and ``c`` of its residuals about the shared
    slopes, ``E|c|^2 = a s^2 tr G + b t^2 tr G^2`` if own slopes deviate with variance ``t^2`` and
    residuals have variance ``s^2``, taken to be the same for all (an arm that always earns the
    same would seem infinitely sure otherwise). The factors ``a`` and ``b`` are below 1 because the
    shared slopes were fitted to the same outcomes, the more so the fewer arms there are: with
    ``h`` an arm's share in them, ``a = 1 - 2 h + h sum(h)`` and ``b = 1 - 2 h + sum(h^2)``. (That
    is exact where the arms' ``G`` are multiples of one another; ``h`` is taken from their traces,
    the penalty of the shared slopes counting as an arm that says nothing.) Summed over the arms
    this gives ``t^2 / s^2``, whose inverse is the penalty; its sampling variance is
    ``2 / sum(b tr G^2)``. It is averaged by precision with the expected ratio, which is taken to be
    as uncertain as it is large.

    Examples
    --------
    Two arms of equal slopes: the penalty grows.

    >>> rng = np.random.default_rng(0)
    >>> z = np.column_stack([rng.normal(size=(400, 4)), np.ones(400), rng.normal(size=400)])
    >>> own_strength(Centred.of(np.stack([z.T @ z] * 2)), np.zeros(4), expected=8.0, noise=1) > 8
    True
    """
    arms, features = centred.crossed.shape
    scratch = np.empty(features + arms)
    strength: float = _own_strength(
        arms, features,
        *pointers(centred.products, centred.crossed, centred.sums, slopes),
        expected, noise, *pointers(scratch),
    )  # fmt: skip
    return strength


class Ridge:
    """One quantity of k arms with d features besides the constant: its moments and estimates.

    Parameters
    ----------
    arms, features : int
        k and d.
    signal, noise : float
        Share of the variance that features are expected to explain; standard deviation that is
        assumed beforehand, as strong as five observations.

    Attributes
    ----------
    theta : ndarray, shape (k, d + 1)
    inverses : ndarray, shape (d + 1, k, d + 1)
        Of the regularised Gram matrices.
    variance : ndarray, shape (k,)
        Of the residuals.
    """

    def __init__(self, arms: int, features: int, *, signal: float, noise: float) -> None:
        width = features + 1
        self.theta: Floats = np.empty((arms, width))
        self.inverses: Floats = np.empty((width, arms, width))
        self.variance: Floats = np.empty(arms)
        self._moments: Floats = np.empty((arms, width + 1, width + 1))
        self._changed = np.ones(arms, np.bool_)
        self._signal, self._noise = signal, noise
        # Of own slopes, as the kept inverses have it; none has been made yet.
        self._strength = 0.0
        centred, slopes, self._prior = Centred(arms, features), np.empty(width), np.empty(arms)
        scratch = pointers(np.empty(width * width + 2 * width + arms))
        given, changed = pointers(self._moments, self._changed)
        shared, (inverses,) = pointers(slopes), pointers(self.inverses)
        self._to_share = [given, changed, *pointers(*centred.arrays()), *shared], scratch
        self._to_invert = [given, changed], [inverses, *scratch]
        self._to_estimate = (
            [given, *pointers(centred.sums), *shared, *pointers(self._prior)],
            [inverses, *pointers(self.theta, self.variance), *scratch],
        )

    def take(self, arm: int, moments: Floats) -> None:
        """Take the moments of one arm, shape (d + 2, d + 2): features, constant, value."""
        self._moments[arm] = moments
        self._changed[arm] = True

    def solve(self, prior: Floats) -> None:
        """Set the estimates; inverses are made anew where moments or the shrinkage changed.

        ``prior``, shape (k,), is each arm's expected mean value, as strong as one observation.
        """
        self._prior[:] = prior
        arms, features = len(self.theta), self.theta.shape[1] - 1
        before, after = self._to_share
        strength = _shared(arms, features, *before, self._signal, self._noise, *after)
        if strength != self._strength:
            self._changed[:] = True
            self._strength = strength
        if features < _LARGE:
            before, after = self._to_invert
            _inverses(arms, features, *before, strength, *after)
        else:
            self._invert_large(strength)
        before, after = self._to_estimate
        _estimates(arms, features, *before, strength, self._noise, *after)
        self._changed[:] = False

    def _invert_large(self, strength: float) -> None:
        for arm in self._changed.nonzero()[0].tolist():
            gram = self._moments[arm, :-1, :-1].copy()
            gram[np.diag_indices(len(gram) - 1)] += strength
            gram[-1, -1] += 1.0
            self.inverses[:, arm] = np.linalg.inv(gram)
