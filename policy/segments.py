"""How the offsets of a partition divide into segments of equal length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy.terms import Ints

SEGMENT = 1_024


def by_segment(offsets: Ints) -> list[tuple[int, Any]]:
    """Return the segments of these offsets, ascending, each with a slice or indices of its own."""
    numbers = offsets // SEGMENT
    found = sorted(set(numbers.tolist()))
    if len(found) == 1:
        return [(found[0], slice(0, len(offsets)))]
    order = [(number, (numbers == number).nonzero()[0]) for number in found]
    # Slices where they lie together, because decisions' ids are sliced as well.
    return [
        (number, slice(at.item(0), at.item(-1) + 1) if at[-1] - at[0] + 1 == len(at) else at)
        for number, at in order
    ]


def used_before(rows: NDArray[Any] | None, end: int) -> Ints:
    """Return how many of a segment's decisions lie before each place, up to ``end``."""
    counts = np.zeros(SEGMENT + 1, np.int64)
    if rows is not None:
        used = rows["used"].astype(np.int64)
        used[max(end, 0) :] = 0
        np.cumsum(used, out=counts[1:])
    return counts


def used_between(segments: Mapping[int, NDArray[Any]], firsts: Ints, end: int) -> Ints:
    """Return how many decisions there are from each of these offsets to before ``end``."""
    result = []
    for first in firsts.tolist():
        count = 0
        for number in range(first // SEGMENT, -(-end // SEGMENT)):
            rows, start = segments.get(number), number * SEGMENT
            if rows is not None:
                count += int(np.count_nonzero(rows["used"][max(first - start, 0) : end - start]))
        result.append(count)
    return np.array(result, np.int64)
