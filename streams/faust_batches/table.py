"""A table of checkpoints: raw values, written many at a time, each to a partition that is named.

A worker that was asleep may still write to a changelog that another one has taken over. Two
things keep that from doing harm. Who takes a partition over writes a *reign* record, and reads all
that lies before it; its offset numbers the reign, and every value carries the number of its
writer's reign. A value of an older reign that lies after a newer reign's record is not restored.
And an owner knows at which offset its next value must come to lie: if it lies elsewhere, somebody
else has written. What a former owner wrote late is covered by our own values; if somebody has begun
to reign after us, we end.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import faust
from aiokafka import AIOKafkaConsumer, TopicPartition
from faust.transport.drivers.aiokafka import server_list

from streams.faust_batches.errors import (
    ChangelogOverlapError,
    PartitionNotOwnedError,
    ValueTooLargeError,
)

if TYPE_CHECKING:
    from streams.faust_batches.app import BatchApp

logger = logging.getLogger(__name__)

VALUE_BYTES_MAX = 900_000
"""Key and value together; a record over 1 MB would be refused by the broker for ever."""

REIGN_KEY = b"\0reign"
"""Key of the record with which a worker begins to write to a changelog's partition."""
REIGN_HEADER = "reign"
NO_REIGN = -1
"""Of values without a header: by a version that wrote none."""

CHANGELOG_CONFIG = {
    "min.cleanable.dirty.ratio": "0.1",
    "segment.ms": "600000",
    "max.compaction.lag.ms": "3600000",
}


class CheckpointTable(faust.Table[bytes, bytes]):
    """Values by partition and key, restored before the partition's first record is delivered.

    Nothing is framed: the changelog's partition is the partition, its keys are the keys.
    """

    app: BatchApp

    def __init__(self, app: BatchApp, *, name: str, partitions: int, **kwargs: Any) -> None:
        super().__init__(
            app,
            name=name,
            partitions=partitions,
            key_type=bytes,
            value_type=bytes,
            extra_topic_configs=CHANGELOG_CONFIG,
            **kwargs,
        )
        self._values: dict[int, dict[bytes, bytes]] = {}
        self._locks: dict[int, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._reigns: dict[int, int] = {}
        self._next: dict[int, int] = {}
        self._late: dict[int, dict[bytes, bytes]] = {}
        self._covered: dict[int, set[bytes]] = {}
        self._gone: dict[int, set[bytes]] = {}

    def values(self, partition: int) -> dict[bytes, bytes]:  # type: ignore[override]
        """Return a copy of the partition's values; :class:`PartitionNotOwnedError` if not ours."""
        return dict(self._owned(partition))

    def late_values(self, partition: int) -> dict[bytes, bytes]:
        """Return values that a replaced worker wrote too late, where no better one is left.

        Compaction has taken the one that was valid. They were valid once: of what the worker
        that has just taken the partition over must redo, they miss more.
        """
        return dict(self._late.get(partition, {}))

    def reigning(self, partition: int) -> ReigningTable:
        """Return the table for whoever has taken the partition over now, until it is given up.

        A process may lose a partition and get it back while its former self is about to write.
        """
        return ReigningTable(self, self._reigns[partition])

    async def put(
        self, partition: int, values: Mapping[bytes, bytes | None], *, reign: int | None = None
    ) -> None:
        """Write values (None deletes) and return when all are durable; may be repeated.

        Calls for the same partition happen one after the other, in order. If it raises another
        error than those below, some of the values may be durable: repeat it or exit. With
        ``reign``, it writes in that reign only.

        Raises
        ------
        ValueTooLargeError
            If a value is over :data:`VALUE_BYTES_MAX`; nothing was written.
        PartitionNotOwnedError
            If the partition is not, or no longer, ours; its new owner has restored it.
        ChangelogOverlapError
            If another worker reigns: end, and take over anew.
        """
        for key, value in values.items():
            size = len(key) + len(value or b"")
            if size > VALUE_BYTES_MAX:
                raise ValueTooLargeError(self.name, key, size, VALUE_BYTES_MAX)
        # Not to be interrupted between the broker's answer and the local update.
        await asyncio.shield(asyncio.ensure_future(self._write(partition, dict(values), reign)))

    async def _write(
        self, partition: int, values: dict[bytes, bytes | None], reign: int | None
    ) -> None:
        async with self._locks[partition]:
            current = self._owned(partition)
            if reign not in (None, self._reigns.get(partition)):
                raise PartitionNotOwnedError(self.name, partition)
            if not await self.app.consumer.confirm_membership():
                raise PartitionNotOwnedError(self.name, partition)
            # We may have lost the partition and taken it over again while we waited: what was
            # to be written is of our former self.
            if self._values.get(partition) is not current:
                raise PartitionNotOwnedError(self.name, partition)
            gaps = await self._append(partition, values)
            _update(current, values.items())
            while gaps:
                late = await self._late_keys(partition, gaps)
                gaps = await self._append(partition, {key: current.get(key) for key in late})

    async def _append(
        self, partition: int, values: Mapping[bytes, bytes | None]
    ) -> list[tuple[int, int]]:
        """Append values under our reign; return the offsets before them that others have taken."""
        topic, producer = self.changelog_topic_name, self.app.producer
        headers = [(REIGN_HEADER, b"%d" % self._reigns.get(partition, NO_REIGN))]
        sent = [
            await producer.send(topic, key, value, partition, None, headers)
            for key, value in values.items()
        ]
        answers = await asyncio.gather(*sent, return_exceptions=True)
        gaps: list[tuple[int, int]] = []
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
            expected = self._next.get(partition, answer.offset)
            if answer.offset < expected:
                raise ChangelogOverlapError(topic, partition, expected, answer.offset)
            if answer.offset > expected:
                gaps.append((expected, answer.offset))
            self._next[partition] = answer.offset + 1
        return gaps

    async def _late_keys(self, partition: int, gaps: Iterable[tuple[int, int]]) -> set[bytes]:
        """Return the keys that a former owner wrote at these offsets.

        Raises
        ------
        ChangelogOverlapError
            If it was no former owner.
        """
        tp, keys = TopicPartition(self.changelog_topic_name, partition), set()
        ours = self._reigns.get(partition, NO_REIGN)
        async with AIOKafkaConsumer(
            bootstrap_servers=server_list(self.app.conf.broker_consumer, 9092),
            group_id=None,
            auto_offset_reset="none",
        ) as consumer:
            consumer.assign([tp])
            for start, end in gaps:
                consumer.seek(tp, start)
                while (at := await consumer.position(tp)) < end:
                    for record in (await consumer.getmany(tp, timeout_ms=500)).get(tp, ()):
                        if record.offset >= end:
                            break
                        if record.key == REIGN_KEY or _reign_of(record) >= ours:
                            raise ChangelogOverlapError(tp.topic, partition, at, record.offset)
                        keys.add(record.key)
        logger.warning("%s/%s: a former owner wrote %s keys late", tp.topic, partition, len(keys))
        return keys

    def _owned(self, partition: int) -> dict[bytes, bytes]:
        try:
            return self._values[partition]
        except KeyError:
            raise PartitionNotOwnedError(self.name, partition) from None

    def open_partitions(self, partitions: set[int]) -> None:
        """Begin to hold these partitions, empty, and no others."""
        self._values = {partition: {} for partition in partitions}
        self._reigns = dict.fromkeys(partitions, NO_REIGN)
        self._next = {}
        self._late = {partition: {} for partition in partitions}
        self._covered = {partition: set() for partition in partitions}
        self._gone = {partition: set() for partition in partitions}

    def restore(self, partition: int, records: Iterable[Any]) -> None:
        """Apply changelog records, in their order, except those that were written too late."""
        values, late = self._values[partition], self._late[partition]
        gone = self._gone[partition]
        for record in records:
            if record.key == REIGN_KEY:
                self._reigns[partition] = record.offset
                continue
            reign = _reign_of(record)
            if reign >= self._reigns[partition]:
                self._reigns[partition] = reign
                _update(values, [(record.key, record.value)])
                (gone.add if record.value is None else gone.discard)(record.key)
                late.pop(record.key, None)
                self._covered[partition].discard(record.key)
            elif record.key in values or record.key in gone:
                self._covered[partition].add(record.key)
            elif record.value is not None:
                late[record.key] = record.value

    async def begin_reign(self, partition: int) -> None:
        """Append the record after which no former owner's value counts any more."""
        topic = self.changelog_topic_name
        sent = await self.app.producer.send(topic, REIGN_KEY, b"", partition, None, None)
        await sent

    async def uncover(self, partition: int, *, next_offset: int) -> None:
        """Write those values again that others came to lie over; ``next_offset`` is the end."""
        self._next[partition] = next_offset
        values = self._values[partition]
        await self._append(partition, {key: values.get(key) for key in self._covered[partition]})
        self._covered[partition].clear()
        self._gone[partition].clear()

    def close_partitions(self) -> None:
        """Drop all values, because the partitions were given up."""
        self._values = {}
        self._late = {}

    async def written(self) -> None:
        """Return when no write is under way any more."""
        for lock in list(self._locks.values()):
            async with lock:
                pass

    def __setitem__(self, key: Any, value: Any) -> NoReturn:
        raise TypeError(f"write to table {self.name!r} with put()")


@dataclass(frozen=True, slots=True)
class ReigningTable:
    """A table in one reign."""

    table: CheckpointTable
    reign: int

    async def put(self, partition: int, values: Mapping[bytes, bytes | None]) -> None:
        """Write values as the table does; :class:`PartitionNotOwnedError` after the reign."""
        await self.table.put(partition, values, reign=self.reign)


def _reign_of(record: Any) -> int:
    found = dict(record.headers or ()).get(REIGN_HEADER)
    return NO_REIGN if found is None else int(found)


def _update(target: dict[bytes, bytes], changes: Iterable[tuple[bytes, bytes | None]]) -> None:
    for key, value in changes:
        if value is None:
            target.pop(key, None)
        else:
            target[key] = value
