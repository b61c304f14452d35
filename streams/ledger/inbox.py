"""Records of one unit that were read but not booked, without gaps that are not proven."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from aiokafka import TopicPartition

from streams.ledger.rows import Raw
from streams.ledger.unit import Batch, Unit


class Message(Protocol):
    """What is read of a consumer's record."""

    @property
    def offset(self) -> int:
        """Its place."""

    @property
    def timestamp(self) -> int:
        """Milliseconds since the epoch."""

    @property
    def key(self) -> bytes | None:
        """Its key."""

    @property
    def value(self) -> bytes | None:
        """Its content."""


class Inbox:
    """Takes the records of a unit in order, and makes batches of them.

    A record that comes after an offset that is missing is refused, and must be read again from
    there. Only if the same record comes again, as behind a transaction's marker, are the offsets
    between taken as ones that hold no record.
    """

    def __init__(self, unit: Unit, topics: tuple[str, str]) -> None:
        self.unit = unit
        decisions, outcomes = (TopicPartition(topic, unit.partition) for topic in topics)
        self._decisions = decisions
        self._outcomes = outcomes
        self.nexts = {decisions: unit.next_decision, outcomes: unit.next_outcome}
        self._held: dict[TopicPartition, list[Raw]] = {decisions: [], outcomes: []}
        # From the offset that is missing to that of the record behind it: seen now, the time
        # before, and proven.
        self._gap: dict[TopicPartition, tuple[int, int]] = {}
        self._missed: dict[TopicPartition, tuple[int, int]] = {}
        self._holes: dict[TopicPartition, tuple[int, int]] = {}

    @property
    def topic_partitions(self) -> tuple[TopicPartition, TopicPartition]:
        """The unit's partitions of decisions and of outcomes."""
        return self._decisions, self._outcomes

    @property
    def size(self) -> int:
        """How many records are held."""
        return sum(map(len, self._held.values()))

    def put(self, tp: TopicPartition, messages: Iterable[Message]) -> int | None:
        """Take records; return the offset to read again from if some of them were refused."""
        held, wanted = self._held[tp], self.nexts[tp]
        taken = too_low = 0
        for message in messages:
            if message.offset < wanted:
                too_low += 1
                continue
            gap = wanted, message.offset
            if message.offset > wanted and self._holes.get(tp) != gap:
                self.nexts[tp], self._gap[tp] = wanted, gap
                return wanted
            held.append(Raw(message.offset, message.timestamp, message.value, message.key))
            wanted = message.offset + 1
            taken += 1
        self.nexts[tp] = wanted
        # Nothing but old records: the consumer's position was reset to the start of the log.
        return wanted if too_low and not taken else None

    def miss(self, tp: TopicPartition, wanted: int) -> None:
        """Note that ``wanted`` was not found although the log reaches from before to after it.

        The second time in a row up to the same record it is a hole: :meth:`put` passes over it.
        """
        gap = self._gap.get(tp)
        if gap is None or gap[0] != wanted:
            return  # Old records came, and nothing behind them.
        if self._missed.get(tp) == gap:
            self._holes[tp] = gap
        self._missed[tp] = gap

    def batch(self) -> Batch:
        """Return what is held."""
        return Batch(
            decisions=tuple(self._held[self._decisions]),
            outcomes=tuple(self._held[self._outcomes]),
        )

    def settle(self) -> None:
        """Let go of what the unit has booked."""
        for tp, offset in self.booked().items():
            held = self._held[tp]
            if held and held[-1].offset < offset:
                held.clear()
            else:
                held[:] = [raw for raw in held if raw.offset >= offset]

    def booked(self) -> dict[TopicPartition, int]:
        """Return the unit's next offsets in the ledger."""
        return {
            self._decisions: self.unit.next_decision,
            self._outcomes: self.unit.next_outcome,
        }
