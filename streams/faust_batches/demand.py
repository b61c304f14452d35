"""Which partitions to fetch from: each batch has its price, whatever its size."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Set

from faust.types import TP

SMALL = 256
"""A batch of fewer records is not worth fetching ahead: what comes meanwhile joins the next."""


class Demand:
    """Counts the batches that were delivered and are not finished, and what rests.

    Parameters
    ----------
    queued_max : int
        Batches of one partition that may be unfinished; one, while it is a small one.
    linger_s : mapping
        By topic, how long after a small batch of a partition the next one is not fetched yet.
    size_max : int
        Records of the largest batch; that one is not small.
    """

    def __init__(
        self, *, queued_max: int, linger_s: Mapping[str, float], size_max: int = SMALL
    ) -> None:
        self._queued_max = queued_max
        self._linger_s = linger_s
        self._small = min(SMALL, size_max)
        self._queued: dict[TP, dict[int, int]] = defaultdict(dict)
        self._rests_until: dict[TP, float] = {}

    def delivered(self, tp: TP, last_offset: int, *, size: int, at: float) -> float:
        """Note a batch; return in how many seconds there is more to fetch, 0 if that is open."""
        self._queued[tp][last_offset] = size
        linger_s = self._linger_s.get(tp.topic, 0.0) if size < self._small else 0.0
        if linger_s:
            self._rests_until[tp] = at + linger_s
        return linger_s

    def finished(self, tp: TP, last_offset: int) -> None:
        """Note that the agent is done with a batch."""
        self._queued[tp].pop(last_offset, None)

    def forget(self, tp: TP) -> None:
        """Drop what is known of a partition."""
        self._queued.pop(tp, None)
        self._rests_until.pop(tp, None)

    def queued(self, tp: TP) -> int:
        """Return how many batches of a partition are unfinished."""
        return len(self._queued[tp])

    def of(self, partitions: Iterable[TP], *, at: float) -> Set[TP]:
        """Return those of the partitions that are to be fetched from."""
        return frozenset(tp for tp in partitions if not self._has_enough(tp, at))

    def _has_enough(self, tp: TP, at: float) -> bool:
        queued = self._queued[tp]
        return (
            len(queued) >= self._queued_max
            or any(size < self._small for size in queued.values())
            or self._rests_until.get(tp, at) > at
        )
