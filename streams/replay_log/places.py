"""Reads one partition's records as a replay needs them: a window ahead, each only once."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

from streams.log import LogReader

WINDOW = 8_192


class Sequential:
    """A topic's partition from an offset on."""

    def __init__(self, reader: LogReader, topic: str, partition: int, *, start: int) -> None:
        self._reader = reader
        self._place = topic, partition
        self._next = start
        self._read: deque[Any] = deque()

    async def below(self, offset: int) -> list[Any]:
        """Return the records below ``offset`` that were not returned before."""
        if offset > self._next:
            _, end = await self._reader.bounds(*self._place)
            until = max(offset, min(self._next + WINDOW, end))
            async for records in self._reader.read(*self._place, self._next, until):
                self._read.extend(records)
            self._next = until
        found = []
        while self._read and self._read[0].offset < offset:
            found.append(self._read.popleft())
        return found


class Scattered:
    """Records of a topic's partition at offsets that go up, with steps back."""

    def __init__(self, reader: LogReader, topic: str, partition: int) -> None:
        self._reader = reader
        self._place = topic, partition
        self._records: dict[int, Any] = {}
        self._next = 0

    async def at(self, offsets: Iterable[int]) -> dict[int, Any]:
        """Return the records at these offsets; a :class:`LogError` if the topic is cut there."""
        wanted = set(offsets)
        missing = [offset for offset in wanted if offset not in self._records]
        if missing:
            _, end = await self._reader.bounds(*self._place)
            start = min(missing)
            if self._next in range(start, max(missing) + 1):
                start = min([o for o in missing if o < self._next], default=self._next)
            until = max(max(missing) + 1, min(start + WINDOW, end))
            if len(self._records) > 4 * WINDOW:
                self._records = {o: r for o, r in self._records.items() if o in wanted}
            async for records in self._reader.read(*self._place, start, until):
                self._records.update((record.offset, record) for record in records)
            self._next = until
        return {offset: self._records[offset] for offset in wanted if offset in self._records}
