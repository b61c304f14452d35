"""Records of one unit that were read but not booked, without gaps that are not proven."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from math import inf
from operator import attrgetter
from typing import Protocol

from aiokafka import TopicPartition

from streams.ledger.rows import Raw
from streams.ledger.unit import Batch, Unit

PATIENCE_S = 0.5
PATIENCE_READS = 5
"""How long, and how many times of reading, outcomes wait for a newer decision if none comes."""

_at_ms = attrgetter("at_ms")
_offset = attrgetter("offset")


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

    Outcomes wait for a decision that is newer than they: then all that they may be about are in
    hand. Outcomes are the smaller records, so a sink reads them ahead of their decisions, and what
    is booked before its decision must be read back from the ledger, which takes a tenth more of
    processor time. It is a matter of time only: any order is booked exactly.
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
        self._decided_ms = 0
        self._patient_until_s = 0.0
        self._reads = 0
        # What was given to be booked once may have been booked: it must be given again.
        self._offered = unit.next_outcome

    @property
    def topic_partitions(self) -> tuple[TopicPartition, TopicPartition]:
        """The unit's partitions of decisions and of outcomes."""
        return self._decisions, self._outcomes

    @property
    def size(self) -> int:
        """How many records are held."""
        return sum(map(len, self._held.values()))

    def put(
        self, tp: TopicPartition, messages: Iterable[Message], *, now_s: float = 0.0
    ) -> int | None:
        """Take records; return the offset to read again from if some of them were refused."""
        held, wanted = self._held[tp], self.nexts[tp]
        is_first = not held
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
        if taken and tp == self._decisions:
            self._decided_ms = held[-1].at_ms
        if taken and (is_first or tp == self._decisions):
            self._patient_until_s = now_s + PATIENCE_S
            self._reads = 0
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

    def batch(self, *, now_s: float = inf) -> Batch:
        """Return what can be booked now."""
        outcomes = self._held[self._outcomes]
        if now_s < self._patient_until_s or (self._reads < PATIENCE_READS and now_s < inf):
            ready = bisect_left(outcomes, self._decided_ms, key=_at_ms)
            offered = bisect_left(outcomes, self._offered, key=_offset)
            outcomes = outcomes[: max(ready, offered)]
        if outcomes:
            self._offered = outcomes[-1].offset + 1
        return Batch(decisions=tuple(self._held[self._decisions]), outcomes=tuple(outcomes))

    def ask(self, *, is_full: bool = False) -> list[TopicPartition]:
        """Return what is to be read now, and count it.

        No more outcomes while some wait, or if the sink ``is_full``.
        """
        self._reads += 1
        if is_full or self._held[self._outcomes]:
            return [self._decisions]
        return [self._decisions, self._outcomes]

    def settle(self) -> None:
        """Let go of what the unit has booked."""
        for tp, offset in self.booked().items():
            held = self._held[tp]
            del held[: bisect_left(held, offset, key=_offset)]

    def booked(self) -> dict[TopicPartition, int]:
        """Return the unit's next offsets in the ledger."""
        return {
            self._decisions: self.unit.next_decision,
            self._outcomes: self.unit.next_outcome,
        }
