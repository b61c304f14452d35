"""Reads parts of topics without a group: for recovery, the catalog, statistics and explanations."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from streams.stopping import stop_consumer


class LogError(Exception):
    """Records that are needed are no longer, or not yet, in a topic."""


class BeyondEndError(LogError):
    """Records are named that lie after the end of a topic."""


class LogReader:
    """One consumer without a group, for one caller at a time."""

    fetch_wait_ms = 1
    """How long the broker may keep a fetch for which it has nothing. What is read lies there
    already, but aiokafka fetches on from its end, and the next read stands behind that fetch."""

    def __init__(self, kafka: str) -> None:
        self._consumer = AIOKafkaConsumer(
            bootstrap_servers=kafka,
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="none",
            max_partition_fetch_bytes=4 << 20,
            fetch_max_wait_ms=self.fetch_wait_ms,
            isolation_level="read_uncommitted",
        )

    async def start(self) -> None:
        """Connect."""
        await self._consumer.start()

    async def stop(self) -> None:
        """Disconnect."""
        await stop_consumer(self._consumer)

    @property
    def client(self) -> Any:
        """Return aiokafka's client, for requests that the consumer has no word for."""
        return self._consumer._client

    async def partitions(self, topic: str) -> list[int]:
        """Return the partitions of a topic; :class:`LogError` if there is none."""
        await self._consumer._client.force_metadata_update()  # the only way to ask without a group
        found = self._consumer._client.cluster.partitions_for_topic(topic)
        if not found:
            raise LogError(f"topic {topic} does not exist")
        return sorted(found)

    async def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        """Return the first offset that is kept and the offset after the last."""
        tp = TopicPartition(topic, partition)
        first = await self._consumer.beginning_offsets([tp])
        end = await self._consumer.end_offsets([tp])
        return first[tp], end[tp]

    async def offset_at(self, topic: str, partition: int, at_ms: int) -> int:
        """Return the first offset whose record is not older than ``at_ms``; the end if none."""
        tp = TopicPartition(topic, partition)
        found = (await self._consumer.offsets_for_times({tp: max(at_ms, 0)}))[tp]
        if found is not None:
            return int(found.offset)
        return (await self.bounds(topic, partition))[1]

    async def read(
        self, topic: str, partition: int, start: int, end: int
    ) -> AsyncIterator[Sequence[Any]]:
        """Yield the records with offsets in ``[start, end)``, a fetch at a time, in order.

        Raises
        ------
        LogError
            If ``start`` is before the first record that is kept.
        BeyondEndError
            If ``end`` is after the last one.
        """
        if start >= end:
            return
        first, last = await self.bounds(topic, partition)
        if start < first:
            raise LogError(f"{topic}/{partition} begins at {first}, but {start} is needed")
        if end > last:
            raise BeyondEndError(f"{topic}/{partition} ends at {last}, but {end} is needed")
        tp = TopicPartition(topic, partition)
        self._consumer.assign([tp])
        self._consumer.seek(tp, start)
        at = start
        while at < end:
            # Not for long: of a transaction's marker only the position tells that it was read.
            fetched = await self._consumer.getmany(tp, timeout_ms=10, max_records=5_000)
            records = [r for r in fetched.get(tp, ()) if r.offset < end]
            if records:
                yield records
                at = records[-1].offset + 1
            # Before the end there may be a marker, or compaction may have removed the records.
            at = max(at, await self._consumer.position(tp))
        self._consumer.assign([])

    async def last(self, topic: str, partition: int, count: int) -> list[Any]:
        """Return the last ``count`` records, or all; the markers of transactions are none."""
        first, end = await self.bounds(topic, partition)
        found: list[Any] = []
        low, step = end, count + 8
        while low > first and len(found) < count:
            high, low = low, max(first, low - step)
            before = [
                r async for records in self.read(topic, partition, low, high) for r in records
            ]
            found = before + found
            step *= 4
        return found[max(len(found) - count, 0) :]

    async def records_end(self, topic: str, partition: int) -> int:
        """Return the offset after the last record, be there markers behind it; 0 if none is kept.

        A reader of the records comes no further than this.
        """
        found = await self.last(topic, partition, 1)
        return found[-1].offset + 1 if found else 0

    async def count(self, topic: str, partitions: Iterable[int]) -> int:
        """Return the sum of the end offsets."""
        ends = await self._consumer.end_offsets([TopicPartition(topic, p) for p in partitions])
        return sum(ends.values())


class RecordCount:
    """Counts the records of a topic, reading each only once: ends count an owner's markers, too."""

    def __init__(self, reader: LogReader, topic: str, partitions: Iterable[int]) -> None:
        self._reader = reader
        self._topic = topic
        self._nexts = dict.fromkeys(partitions, 0)
        self._count = 0

    async def read(self) -> int:
        """Return how many there are now."""
        for number, start in self._nexts.items():
            _, end = await self._reader.bounds(self._topic, number)
            async for records in self._reader.read(self._topic, number, start, end):
                self._count += len(records)
            self._nexts[number] = end
        return self._count
