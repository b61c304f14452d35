"""Which segment a request belongs to, as features: a column for each segment of the catalog."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from policy.terms import Settings


def with_segments(
    features: NDArray[np.float32], segments: Sequence[str], settings: Settings
) -> NDArray[np.float32]:
    """Return the features with a column for each segment before the constant.

    A request's own segment has ``settings.segment_weight`` in its column, the others 0; a request
    of a segment that the settings do not name has 0 in all of them. An arm's slopes of these
    columns are estimated like all others, so that what it is good at in a segment is shrunk
    towards what all arms are, the more so the fewer outcomes the segment has.

    Parameters
    ----------
    features : ndarray of float32, shape (n, d)
        The constant last.
    segments : sequence of n str
    settings : Settings
        Without a weight the features are returned as they are.

    Returns
    -------
    ndarray of float32, shape (n, d + s)

    Examples
    --------
    >>> settings = Settings(dimensions=3, segments=("code", "maths"), segment_weight=0.5)
    >>> features = np.array([[7.0, 1.0], [8.0, 1.0]], np.float32)
    >>> with_segments(features, ["maths", "other"], settings).tolist()
    [[7.0, 0.0, 0.5, 1.0], [8.0, 0.0, 0.0, 1.0]]
    """
    if not settings.segment_columns:
        return features
    given, names = features.shape[1] - 1, settings.segments
    wide = np.zeros((len(features), given + len(names) + 1), np.float32)
    wide[:, :given], wide[:, -1] = features[:, :-1], features[:, -1]
    places = {name: given + place for place, name in enumerate(names)}
    for row, name in enumerate(segments):
        place = places.get(name)
        if place is not None:
            wide[row, place] = settings.segment_weight
    return wide


def features_name(encoder: str, settings: Settings) -> str:
    """Return the version of all features: what was learned with other columns is not theirs.

    Examples
    --------
    >>> features_name("lexical-0123456789ab", Settings())
    'lexical-0123456789ab'
    >>> features_name("", Settings(dimensions=66, segments=("a", "b"), segment_weight=1.0))
    '+segments-9ae33db443a4'
    """
    if not settings.segment_columns:
        return encoder
    text = "\n".join([*settings.segments, repr(settings.segment_weight)])
    return f"{encoder}+segments-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
