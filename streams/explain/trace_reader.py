"""Reads records of one request: at known places, or by reading a partition through."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from msgspec import Struct

from streams import topics
from streams.explain.trace import Placed
from streams.log import LogReader
from streams.records import BadRecordError, decode

R = TypeVar("R", bound=Struct)

_GAP = 1_000
"""Records this near to each other are read in one go."""


class TraceReader(LogReader):
    """A reader that picks or searches records."""

    async def search(
        self,
        topic: str,
        number: int,
        kind: type[R],
        wanted: Callable[[Any], bool],
        *,
        start: int = 0,
    ) -> tuple[list[Placed[R]], tuple[int, int]]:
        """Return the wanted records from ``start`` on, and from where to where was read."""
        first, end = await self.bounds(topic, number)
        start = max(first, start)
        found = []
        async for records in self.read(topic, number, start, end):
            found += [placed(record, kind) for record in records if wanted(record)]
        return found, (start, max(start, end))

    async def pick(
        self, topic: str, number: int, kind: type[R], wanted: Callable[[Any], bool], *,
        at: Sequence[int],
    ) -> list[Placed[R]]:  # fmt: skip
        """Return those of the records at these offsets that are kept and wanted."""
        first, end = await self.bounds(topic, number)
        found = []
        for run in _runs(sorted(offset for offset in at if first <= offset < end)):
            places = set(run)
            async for records in self.read(topic, number, run[0], run[-1] + 1):
                found += [placed(r, kind) for r in records if r.offset in places and wanted(r)]
        return found


def partition_of(root: str, numbers: Sequence[int]) -> int:
    """Return the partition that the key of this budget root belongs to."""
    return topics.home_partition(root.encode(), len(numbers))


def is_about(value: bytes | None, request_id: str) -> bool:
    """Return whether a record names this request, as far as even a broken one shows it.

    Examples
    --------
    >>> is_about(b'{"request_id": "r1", "oops": ', "r1"), is_about(b'{"request_id":"r12"}', "r1")
    (True, False)
    """
    # The first test spares nearly every record the second.
    if value is None or request_id.encode() not in value:
        return False
    pattern = rb'"request_id"\s*:\s*"' + re.escape(request_id.encode()) + rb'"'
    return re.search(pattern, value) is not None


def placed(record: Any, kind: type[R]) -> Placed[R]:
    """Return the record with its place, read as this kind if it can be."""
    found: Placed[R] = Placed(
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        at_ms=record.timestamp,
    )
    try:
        return replace(found, record=decode(kind, record.value))
    except BadRecordError as exc:
        return replace(found, problem=str(exc))


def _runs(offsets: Sequence[int]) -> Iterator[list[int]]:
    """Divide sorted offsets where the way to the next is long."""
    run: list[int] = []
    for offset in offsets:
        if run and offset - run[-1] > _GAP:
            yield run
            run = []
        run.append(offset)
    if run:
        yield run
