"""How many dead letters there are, and where the last records of topics lie."""

from __future__ import annotations

from collections.abc import Sequence

from streams import topics
from streams.log import LogReader, RecordCount


class DeadLetterCount:
    """Counts the dead letters; connected between :meth:`start` and :meth:`stop`."""

    def __init__(self, kafka: str) -> None:
        self._reader = LogReader(kafka)
        self._count = RecordCount(self._reader, topics.DEAD_LETTERS, ())

    async def start(self) -> None:
        """Connect and learn the partitions."""
        await self._reader.start()
        partitions = await self._reader.partitions(topics.DEAD_LETTERS)
        self._count = RecordCount(self._reader, topics.DEAD_LETTERS, partitions)

    async def stop(self) -> None:
        """Disconnect."""
        await self._reader.stop()

    async def read(self) -> int:
        """Return how many there are now."""
        return await self._count.read()


async def record_ends(kafka: str, names: Sequence[str]) -> dict[tuple[str, int], int]:
    """Return the offset after the last record of each partition of these topics."""
    reader = LogReader(kafka)
    await reader.start()
    try:
        return {
            (name, number): await reader.records_end(name, number)
            for name in names
            for number in await reader.partitions(name)
        }
    finally:
        await reader.stop()
