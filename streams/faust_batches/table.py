"""A table of checkpoints: raw values, written many at a time, each to a partition that is named."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import faust

from streams.faust_batches.errors import PartitionNotOwnedError, ValueTooLargeError

if TYPE_CHECKING:
    from streams.faust_batches.app import BatchApp

VALUE_BYTES_MAX = 900_000
"""Key and value together; a record over 1 MB would be refused by the broker for ever."""

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

    def values(self, partition: int) -> dict[bytes, bytes]:  # type: ignore[override]
        """Return a copy of the partition's values; :class:`PartitionNotOwnedError` if not ours."""
        return dict(self._owned(partition))

    async def put(self, partition: int, values: Mapping[bytes, bytes | None]) -> None:
        """Write values (None deletes) and return when all are durable; may be repeated.

        Calls for the same partition happen one after the other, in order. If it raises another
        error than those below, some of the values may be durable: repeat it or exit.

        Raises
        ------
        ValueTooLargeError
            If a value is over :data:`VALUE_BYTES_MAX`; nothing was written.
        PartitionNotOwnedError
            If the partition is not, or no longer, ours; its new owner has restored it.
        """
        for key, value in values.items():
            size = len(key) + len(value or b"")
            if size > VALUE_BYTES_MAX:
                raise ValueTooLargeError(self.name, key, size, VALUE_BYTES_MAX)
        # Not to be interrupted between the broker's answer and the local update.
        await asyncio.shield(asyncio.ensure_future(self._write(partition, dict(values))))

    async def _write(self, partition: int, values: dict[bytes, bytes | None]) -> None:
        async with self._locks[partition]:
            current = self._owned(partition)
            if not await self.app.consumer.confirm_membership():
                raise PartitionNotOwnedError(self.name, partition)
            topic, producer = self.changelog_topic_name, self.app.producer
            sent = [
                await producer.send(topic, key, value, partition, None, None)
                for key, value in values.items()
            ]
            for answer in await asyncio.gather(*sent, return_exceptions=True):
                if isinstance(answer, BaseException):
                    raise answer
            _update(current, values.items())

    def _owned(self, partition: int) -> dict[bytes, bytes]:
        try:
            return self._values[partition]
        except KeyError:
            raise PartitionNotOwnedError(self.name, partition) from None

    def open_partitions(self, partitions: set[int]) -> None:
        """Begin to hold these partitions, empty, and no others."""
        self._values = {partition: {} for partition in partitions}

    def restore(self, partition: int, records: Iterable[Any]) -> None:
        """Apply changelog records, in their order."""
        _update(self._values[partition], ((record.key, record.value) for record in records))

    def close_partitions(self) -> None:
        """Drop all values, because the partitions were given up."""
        self._values = {}

    def __setitem__(self, key: Any, value: Any) -> NoReturn:
        raise TypeError(f"write to table {self.name!r} with put()")


def _update(target: dict[bytes, bytes], changes: Iterable[tuple[bytes, bytes | None]]) -> None:
    for key, value in changes:
        if value is None:
            target.pop(key, None)
        else:
            target[key] = value
