"""Puts the decisions of one call together again; an owner writes them one behind the other."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from streams import topics
from streams.log import LogReader
from streams.records import BadRecordError, Decision, decode


@dataclass(slots=True, eq=False)
class Placed:
    """A record of the decisions; ``decision`` is None where it is none."""

    offset: int
    record: Any
    decision: Decision | None


@dataclass(slots=True, eq=False)
class Round:
    """Neighbours in the log that say that one call of ``decide`` made them.

    ``first`` is the offset at which the worker meant to write them, -1 if they do not say so.
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

    def goes_on_with(self, item: Placed) -> bool:
        """Return whether the next record of the log belongs to the round."""
        decision = item.decision
        return (
            decision is not None
            and decision.offsets.decisions == self.first >= 0
            and decision.offsets.request not in self.requests
        )

    def add(self, item: Placed) -> None:
        """Take the next record."""
        self.items.append(item)
        if item.decision is not None:
            self.requests.add(item.decision.offsets.request)


def rounds_of(items: Iterable[Placed], last: Round | None = None) -> Iterator[Round]:
    """Yield the rounds of these records, which follow on ``last``; that of the final one, too.

    Each is whole, but for the last one of all.
    """
    for item in items:
        if last is None or not last.goes_on_with(item):
            if last is not None:
                yield last
            last = Round(-1 if item.decision is None else item.decision.offsets.decisions)
        last.add(item)
    if last is not None:
        yield last


async def read_rounds(reader: LogReader, partition: int, end: int) -> AsyncIterator[Round]:
    """Yield the rounds of a partition that begin below ``end``, from the first on."""
    _, log_end = await reader.bounds(topics.DECISIONS, partition)
    last: Round | None = None
    async for records in reader.read(topics.DECISIONS, partition, 0, log_end):
        items = [Placed(r.offset, r, _decision(r.value)) for r in records]
        *whole, last = rounds_of(items, last)
        for round_ in whole:
            if round_.items[0].offset >= end:
                return
            yield round_
    if last is not None and last.items[0].offset < end:
        yield last


def _decision(value: bytes | None) -> Decision | None:
    try:
        return decode(Decision, value)
    except BadRecordError:
        return None
