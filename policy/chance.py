"""Chance from seeds: a request draws the same numbers wherever and whenever it is decided."""

from __future__ import annotations

import numpy as np

from policy.terms import Floats, Seeds

_STEP = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def uniforms(seeds: Seeds, *, stream: int) -> Floats:
    """Return one number in [0, 1) per seed; different streams are independent.

    Parameters
    ----------
    seeds : ndarray of uint64, shape (n,)
    stream : int
        Which draw of the request this is, counted from 0.

    Returns
    -------
    ndarray, shape (n,)

    References
    ----------
    .. [1] Steele, Lea, Flood, Fast splittable pseudorandom number generators, 2014 (SplitMix64).

    Examples
    --------
    >>> uniforms(np.array([1, 2], dtype=np.uint64), stream=0).round(6)
    array([0.36819 , 0.392216])
    """
    # Hashed once before the stream is added: neighbouring seeds would share draws otherwise.
    state = scramble(seeds.astype(np.uint64) + _STEP) + np.uint64((stream + 1) * int(_STEP) % 2**64)
    return (scramble(state) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def scramble(state: Seeds) -> Seeds:
    """Return well-mixed 64 bits of each number, shape (n,)."""
    state = (state ^ (state >> np.uint64(30))) * _MIX_1
    state = (state ^ (state >> np.uint64(27))) * _MIX_2
    return state ^ (state >> np.uint64(31))
