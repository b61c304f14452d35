"""Reads the ends of topics, and what is appended to them, without a group."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any

from aiokafka import TopicPartition

from streams.log import LogReader

Place = tuple[str, int]


class TailReader(LogReader):
    """A reader of what lies at the end of topics."""

    fetch_wait_ms = 100

    async def some(self, topic: str, count: int, *, first: bool) -> list[Any]:
        """Return the first or last ``count`` records that are there now, in order of their time."""
        found: list[Any] = []
        for number in await self.partitions(topic):
            if first:
                found += await self._first(topic, number, count)
            else:
                found += await self.last(topic, number, count)
        found.sort(key=lambda record: record.timestamp)
        return found[:count] if first else found[max(len(found) - count, 0) :]

    async def _first(self, topic: str, partition: int, count: int) -> list[Any]:
        found: list[Any] = []
        start, end = await self.bounds(topic, partition)
        # Where records were compacted away, or markers lie, a stretch holds less than it is long.
        while start < end and len(found) < count:
            until = min(end, start + count)
            async for records in self.read(topic, partition, start, until):
                found += records
            start = until
        return found[:count]

    async def positions(self, names: Sequence[str], *, first: bool = False) -> dict[Place, int]:
        """Return where each partition of these topics ends, or begins."""
        found = {}
        for topic in names:
            for number in await self.partitions(topic):
                bounds = await self.bounds(topic, number)
                found[topic, number] = bounds[0 if first else 1]
        return found

    async def follow(self, positions: dict[Place, int]) -> AsyncGenerator[Sequence[Any], None]:
        """Yield what comes from these positions on, without end; an empty fetch is told, too."""
        self._consumer.assign([TopicPartition(*place) for place in positions])
        for place, offset in positions.items():
            self._consumer.seek(TopicPartition(*place), offset)
        while True:
            fetched = await self._consumer.getmany(timeout_ms=200)
            records = [record for part in fetched.values() for record in part]
            yield sorted(records, key=lambda record: record.timestamp)
