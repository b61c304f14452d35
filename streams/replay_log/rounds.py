"""Puts the decisions of one call together again, wherever in the log they came to lie."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

from streams import topics
from streams.log import LogReader
from streams.records import BadRecordError, Decision, decode

SPREAD_MAX = 4_096
"""How far from each other two decisions of one call may lie."""


@dataclass(slots=True, eq=False)
class Placed:
    """A record of the decisions; ``decision`` is None where it is none."""

    offset: int
    record: Any
    decision: Decision | None


@dataclass(slots=True, eq=False)
class Round:
    """The decisions of one call of ``decide``.

    ``first`` is the offset at which the worker meant to write them, -1 if they do not say so. They
    are ``in_place`` if they lie there. Otherwise another worker was writing to the partition too.
    """

    first: int
    items: list[Placed] = field(default_factory=list)
    requests: set[int] = field(default_factory=set)

    @property
    def in_place(self) -> bool:
        """Return whether the state that made the round was that of the log before it."""
        return [item.offset for item in self.items] == list(
            range(self.first, self.first + len(self.items))
        )

    @property
    def head(self) -> Decision:
        """Return the first decision."""
        decision = self.items[0].decision
        assert decision is not None
        return decision


@dataclass(slots=True, eq=False)
class Segment:
    """Decisions of one round that lie next to each other; a round not in place may have several."""

    round: Round
    items: list[Placed]


class Assembler:
    """Takes the records of the log in order, and knows the rounds that they make."""

    def __init__(self) -> None:
        self.segments: deque[Segment] = deque()
        self._rounds: dict[int, Round] = {}

    def add(self, item: Placed) -> None:
        """Take the next record."""
        decision = item.decision
        if decision is None or decision.offsets.decisions < 0:
            self.segments.append(Segment(Round(-1, [item]), [item]))
            return
        first, request = decision.offsets.decisions, decision.offsets.request
        found = self._rounds.get(first)
        # Two workers may have meant to write at the same place, and the same request.
        if found is None or request in found.requests:
            found = self._rounds[first] = Round(first)
        found.items.append(item)
        found.requests.add(request)
        if self.segments and self.segments[-1].round is found:
            self.segments[-1].items.append(item)
        else:
            self.segments.append(Segment(found, [item]))

    def take_whole(self, below: int) -> Iterator[Segment]:
        """Yield segments from the front, as long as all of their rounds end before ``below``."""
        while self.segments and self.segments[0].round.items[-1].offset < below:
            yield self.segments.popleft()
        self._rounds = {k: r for k, r in self._rounds.items() if r.items[-1].offset >= below}


async def read_segments(reader: LogReader, partition: int, end: int) -> AsyncIterator[Segment]:
    """Yield the segments of a partition from its begin on; rounds that begin below ``end``."""
    _, last = await reader.bounds(topics.DECISIONS, partition)
    assembler = Assembler()
    async for records in reader.read(topics.DECISIONS, partition, 0, last):
        for record in records:
            assembler.add(Placed(record.offset, record, _decision(record.value)))
        # A round is known to be whole once the log has gone on far enough beyond it.
        for segment in assembler.take_whole(records[-1].offset - SPREAD_MAX):
            if segment.items[0].offset >= end:
                return
            yield segment
    for segment in assembler.take_whole(last):
        if segment.items[0].offset >= end:
            return
        yield segment


def _decision(value: bytes | None) -> Decision | None:
    try:
        return decode(Decision, value)
    except BadRecordError:
        return None
