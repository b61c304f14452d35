"""The compacted topics as they were: what is still known of them at an offset."""

from __future__ import annotations

import base64
from bisect import bisect_left
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from policy.state import State
from streams import topics
from streams.log import LogReader
from streams.records import BadRecordError, Statistics, decode


@dataclass(slots=True)
class Kept:
    """Which records of a compacted topic with one partition are still there."""

    first: int = 0
    end: int = 0
    offsets: list[int] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    _lost: dict[int, bytes | None] = field(default_factory=dict)

    def add(self, record: Any) -> None:
        """Take the next record."""
        self.offsets.append(record.offset)
        self.keys.append(record.key or b"")

    def lost_at(self, offset: int) -> bytes | None:
        """Return a key whose value at ``offset`` may be gone; None if all of them are known.

        Compaction keeps the last record of a key. One that was the last before ``offset`` may
        have been removed if the key has a later one, and records before ``offset`` are missing.
        """
        if offset not in self._lost:
            self._lost[offset] = self._lost_at(offset)
        return self._lost[offset]

    def _lost_at(self, offset: int) -> bytes | None:
        place = bisect_left(self.offsets, offset)
        if place == offset:
            return None
        last: dict[bytes, int] = dict(
            zip(self.keys[:place], range(place), strict=True)
        )  # the last of each key wins
        for key in dict.fromkeys(self.keys[place:]):
            at = last.get(key, -1)
            since = self.offsets[at] + 1 if at >= 0 else 0
            # Fewer records between its last one and here than there are offsets.
            if place - at - 1 < offset - since:
                return key
        return None


@dataclass(slots=True)
class Histories:
    """Both topics; read once, for all partitions."""

    catalog: list[Any]
    catalog_kept: Kept
    statistics_kept: Kept

    @classmethod
    async def read(cls, reader: LogReader) -> Histories:
        """Read both topics to their ends; of the statistics only which records there are."""
        catalog: list[Any] = []
        kepts = []
        for topic in (topics.CATALOG, topics.STATISTICS):
            first, end = await reader.bounds(topic, 0)
            kept = Kept(first, end)
            async for records in reader.read(topic, 0, first, end):
                for record in records:
                    kept.add(record)
                    if topic == topics.CATALOG:
                        catalog.append(record)
            kepts.append(kept)
        return cls(catalog, *kepts)

    def lost_at(self, *, catalog: int, statistics: int, partition: int) -> str:
        """Return what of these views is gone, in words; empty if nothing is."""
        key = self.catalog_kept.lost_at(catalog)
        if key is not None:
            return f"{topics.CATALOG} no longer has what held at {catalog}: {_text(key)}"
        key = self.statistics_kept.lost_at(statistics)
        # What the partition itself had published it does not read.
        if key is not None and not key.startswith(b"%d:" % partition):
            return f"{topics.STATISTICS} no longer has what was seen at {statistics}: {_text(key)}"
        return ""


class StatisticsView:
    """Lets a state learn what other partitions had published, up to offsets that never go back."""

    def __init__(self, reader: LogReader, kept: Kept, partition: int) -> None:
        self._reader = reader
        self._kept = kept
        self._partition = partition

    async def merge(self, state: State, until: int) -> None:
        """Merge the last record of each arm and partition below ``until``, as a worker does."""
        start = max(state.statistics, self._kept.first)
        newest: dict[tuple[int, str], Statistics] = {}
        async for records in self._reader.read(topics.STATISTICS, 0, start, until):
            for record in records:
                try:
                    learned = decode(Statistics, record.value)
                except BadRecordError:
                    continue  # a worker passes over it too
                newest[learned.partition, learned.arm] = learned
        policy = state.catalog.settings.policy
        for (source, arm), learned in newest.items():
            if source != self._partition and learned.policy == policy:
                # A worker passes over what another version of the policy has written.
                with suppress(ValueError):
                    state.policy.merge(arm, source, base64.b64decode(learned.state_b64))
        state.statistics = max(state.statistics, until)


def _text(key: bytes) -> str:
    return key.decode(errors="replace")
