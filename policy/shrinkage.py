"""How far each arm's slopes are shrunk towards those of all arms, judged from what was seen.

Where models differ little in what they are good at, slopes of their own are mostly noise, and
taking the best of many noisy estimates is worse than not looking at the request at all; where they
do differ, shrinking loses what there is to win. How much they differ is a property of the traffic
and of the arms, so it is estimated (empirical Bayes) instead of being a setting.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from policy.centred import Centred
from policy.terms import Floats

_RANGE = 64.0
"""The expected penalty may be weakened or strengthened by so many times."""


def own_strengths(
    centred: Centred, slopes: Floats, *, expected: Sequence[float], noises: Sequence[float]
) -> list[float]:
    """Return the ridge penalty that draws each arm's slopes to the shared ones.

    Of ``g`` quantities that are learned of the same arms, each by itself.

    Parameters
    ----------
    centred : Centred
        Moments of the arms.
    slopes : ndarray, shape (g, d)
        Shared by the arms.
    expected : sequence of g floats
        The penalty that is expected beforehand.
    noises : sequence of g floats
        Standard deviation that is assumed beforehand, as strong as five observations.

    Returns
    -------
    list of g floats
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
    >>> centred = Centred(1, 2, 4)
    >>> centred.take(np.array([0, 0]), np.array([0, 1]), np.stack([z.T @ z] * 2))
    >>> own_strengths(centred, np.zeros((1, 4)), expected=[8.0], noises=[1.0])[0] > 8.0
    True
    """
    if not slopes.shape[1]:
        return list(expected)
    column = slopes[..., None]
    fitted = (centred.products @ column[:, None])[..., 0]
    errors = centred.values - ((2.0 * centred.crossed - fitted) @ column)[..., 0]
    assumed = np.array([5.0 * noise**2 for noise in noises])
    variance = (errors.sum(axis=1) + assumed) / (centred.weight.sum(axis=1) + 5.0)
    misses = ((centred.crossed - fitted) ** 2).sum(axis=2)
    trace = centred.trace
    penalty = slopes.shape[1] * np.array(expected)
    share = trace / (trace.sum(axis=1) + penalty)[:, None]
    noise = trace * (1.0 + share * (share.sum(axis=1)[:, None] - 2.0))
    spreads = centred.norm * (1.0 - 2.0 * share + (share**2).sum(axis=1)[:, None])
    excesses = (misses / variance[:, None] - noise).sum(axis=1).tolist()
    found = zip(excesses, spreads.sum(axis=1).tolist(), expected, strict=True)
    return [_strength(excess, max(spread, 1e-300), guess) for excess, spread, guess in found]


def _strength(excess: float, spread: float, expected: float) -> float:
    # In units of the expected ratio, which is 1 with variance 1.
    trust = spread / (spread + 2.0 * expected**2)
    ratio = trust * (excess * expected / spread) + 1.0 - trust
    ratio = min(max(ratio, 1.0 / _RANGE), _RANGE)
    return float(expected * 2.0 ** (-round(2.0 * math.log2(ratio)) / 2.0))
