"""Records that were fetched and wait for their agent: what comes meanwhile is one batch.

A batch is made when the agent is free, not when its first record comes. Made earlier it would
stand in a queue, and what comes to its partition in the meantime would have to stand in the queue
once more.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from faust.types import TP

BYTES_MAX = 8 << 20
"""A partition of which so much waits is not fetched from."""
WORTH_IT = 256
"""Records for which no agent lets a partition rest: a batch has its price, whatever its size."""


class Taken(NamedTuple):
    """A batch for an agent, and whether its partition was kept back for being full."""

    tp: TP
    records: list[Any]
    was_full: bool


class Ahead:
    """What waits, by partition, until the agent of its topic has finished its batch.

    The fetching thread puts in what the main thread takes; a lock keeps every step whole.

    Parameters
    ----------
    records_max : int
        Of the largest batch. A partition of which so many wait is not fetched from, so that fewer
        than twice as many ever do.
    linger_s : mapping
        By topic, how long a partition rests after a batch, unless many records wait.

    Attributes
    ----------
    epoch : int
        Grows with every :meth:`clear`.
    """

    def __init__(self, *, records_max: int, linger_s: Mapping[str, float]) -> None:
        self.epoch = 0
        self._records_max = records_max
        self._linger_s = linger_s
        self._lock = threading.Lock()
        self._records: dict[TP, list[Any]] = defaultdict(list)
        self._bytes: dict[TP, int] = defaultdict(int)
        self._kept_back: set[TP] = set()
        self._at_work: dict[str, tuple[TP, int]] = {}
        self._rests_until: dict[TP, float] = {}

    def put(self, tp: TP, records: Sequence[Any], *, epoch: int) -> None:
        """Let records wait that were fetched after those that do; drop them in a later epoch."""
        size = _size(records)
        with self._lock:
            if epoch == self.epoch:
                self._records[tp] += records
                self._bytes[tp] += size

    def is_busy(self) -> bool:
        """Return whether an agent has a batch, or will take one as soon as it is asked."""
        with self._lock:
            return bool(self._at_work) or any(
                tp.topic not in self._linger_s for tp in self._records
            )

    def room(self, partitions: Collection[TP]) -> frozenset[TP]:
        """Return the partitions of which not so much waits that they are kept back."""
        with self._lock:
            full = {tp for tp in partitions if self._is_full(tp)}
            self._kept_back |= full
        return frozenset(partitions) - full

    def take(self, topic: str, *, among: Collection[TP], at: float) -> Taken | None:
        """Return the next batch for the agent of a topic, if there is one now, in seconds.

        It is of the partition, of those named, that has waited longest.
        """
        with self._lock:
            if topic in self._at_work:
                return None
            # A dict keeps the order in which its keys came.
            for tp in self._records:
                if tp.topic == topic and tp in among and not self._rest_s(tp, at):
                    break
            else:
                return None
            records = self._records.pop(tp)
            more = records[self._records_max :]
            del records[self._records_max :], self._bytes[tp]
            if more:
                self._records[tp], self._bytes[tp] = more, _size(more)
            was_full = tp in self._kept_back
            self._kept_back.discard(tp)
            self._at_work[topic] = tp, records[-1].offset
            if topic in self._linger_s:
                self._rests_until[tp] = at + self._linger_s[topic]
            return Taken(tp, records, was_full)

    def finished(self, tp: TP, last_offset: int) -> None:
        """Note that the agent is done with the batch that ends with this record."""
        if self._at_work.get(tp.topic) == (tp, last_offset):
            del self._at_work[tp.topic]

    def rests_s(self, topic: str, *, among: Collection[TP], at: float) -> float | None:
        """Return how long it is until :meth:`take` finds something; None if only others know."""
        with self._lock:
            if topic in self._at_work:
                return None
            waiting = (tp for tp in self._records if tp.topic == topic and tp in among)
            return min((self._rest_s(tp, at) for tp in waiting), default=None)

    def count(self, tp: TP) -> int:
        """Return how many records of a partition wait."""
        return len(self._records.get(tp, ()))

    def clear(self) -> None:
        """Drop everything, also what was fetched and not put in yet: it is fetched again."""
        with self._lock:
            self.epoch += 1
            self._records.clear()
            self._bytes.clear()
            self._kept_back.clear()
            self._at_work.clear()
            self._rests_until.clear()

    def _rest_s(self, tp: TP, at: float) -> float:
        if self.count(tp) >= WORTH_IT:
            return 0.0
        return max(self._rests_until.get(tp, at) - at, 0.0)

    def _is_full(self, tp: TP) -> bool:
        return self.count(tp) >= self._records_max or self._bytes.get(tp, 0) >= BYTES_MAX


def _size(records: Sequence[Any]) -> int:
    return sum(len(record.value or b"") for record in records)
