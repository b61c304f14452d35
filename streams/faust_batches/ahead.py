"""Records that were fetched and wait for their agent: what comes meanwhile is one batch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from faust.types import TP

BYTES_MAX = 8 << 20
"""A partition of which so much waits is not fetched from."""
WORTH_IT = 256
"""Records for which no agent lets a partition rest: a batch has its price, whatever its size."""


class Ahead:
    """What waits, by partition, until the agent has finished the batch before it.

    Parameters
    ----------
    records_max : int
        Of the largest batch. A partition of which so many wait is not fetched from, so that fewer
        than twice as many ever do.
    linger_s : mapping
        By topic, how long a partition rests after a batch, unless many records wait.
    """

    def __init__(self, *, records_max: int, linger_s: Mapping[str, float]) -> None:
        self._records_max = records_max
        self._linger_s = linger_s
        self._records: dict[TP, list[Any]] = defaultdict(list)
        self._bytes: dict[TP, int] = defaultdict(int)
        self._at_work: dict[TP, int] = {}
        self._rests_until: dict[TP, float] = {}

    def put(self, tp: TP, records: Sequence[Any]) -> None:
        """Let records wait that were fetched after those that do."""
        self._records[tp] += records
        self._bytes[tp] += sum(len(record.value or b"") for record in records)

    def take(self, tp: TP, *, at: float) -> list[Any]:
        """Return the next batch; empty if there is none for the agent now, in seconds."""
        if not self.count(tp) or tp in self._at_work or self.rests_s(tp, at=at):
            return []
        records = self._records.pop(tp)
        del self._bytes[tp]
        if len(records) > self._records_max:
            self.put(tp, records[self._records_max :])
            del records[self._records_max :]
        self._at_work[tp] = records[-1].offset
        if tp.topic in self._linger_s:
            self._rests_until[tp] = at + self._linger_s[tp.topic]
        return records

    def finished(self, tp: TP, last_offset: int) -> None:
        """Note that the agent is done with the batch that ends with this record."""
        if self._at_work.get(tp) == last_offset:
            del self._at_work[tp]

    def rests_s(self, tp: TP, *, at: float) -> float:
        """Return for how long a batch must not be taken, 0 if that is open."""
        if self.count(tp) >= WORTH_IT:
            return 0.0
        return max(self._rests_until.get(tp, at) - at, 0.0)

    def count(self, tp: TP) -> int:
        """Return how many records of a partition wait."""
        return len(self._records.get(tp, ()))

    def is_full(self, tp: TP) -> bool:
        """Return whether enough of a partition waits."""
        return self.count(tp) >= self._records_max or self._bytes.get(tp, 0) >= BYTES_MAX

    def clear(self) -> None:
        """Drop everything: it will be fetched again."""
        self._records.clear()
        self._bytes.clear()
        self._at_work.clear()
        self._rests_until.clear()
