"""How many dead letters there are, and where the last records of topics lie."""

from __future__ import annotations

from collections.abc import Sequence

from streams import topics
from streams.log import LogReader


class DeadLetterCount:
    """Counts the dead letters, each once; connected between :meth:`start` and :meth:`stop`."""

    def __init__(self, kafka: str) -> None:
        self._reader = LogReader(kafka)
        self._next: dict[int, int] = {}
        self._count = 0

    async def start(self) -> None:
        """Connect and learn the partitions."""
        await self._reader.start()
        self._next = dict.fromkeys(await self._reader.partitions(topics.DEAD_LETTERS), 0)

    async def stop(self) -> None:
        """Disconnect."""
        await self._reader.stop()

    async def read(self) -> int:
        """Return how many there are now."""
        for number, start in self._next.items():
            _, end = await self._reader.bounds(topics.DEAD_LETTERS, number)
            async for records in self._reader.read(topics.DEAD_LETTERS, number, start, end):
                self._count += len(records)
            self._next[number] = end
        return self._count


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
