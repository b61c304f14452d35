"""What a sink holds of one partition, the records it books at once, and what it counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from streams.ledger.cases import Cases
from streams.ledger.chain import Link
from streams.ledger.rows import Raw


@dataclass(slots=True, kw_only=True)
class Unit:
    """Partition ``partition`` of decisions and of outcomes, as the writer of ``epoch`` holds it.

    ``partitions`` is how many there are of each: it says where a key belongs.
    """

    partition: int
    partitions: int
    epoch: int
    next_decision: int
    next_outcome: int
    cases: Cases
    link: Link
    """The last link of the partition's chain that is known to be committed."""
    behind: bool = True
    """Whether reservations may have expired that are not booked as expired yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Records of one unit in the order of their offsets; offsets between them hold no record."""

    decisions: Sequence[Raw] = ()
    outcomes: Sequence[Raw] = ()

    def __bool__(self) -> bool:
        """Return whether there is any record."""
        return bool(self.decisions or self.outcomes)

    def ends(self, unit: Unit) -> tuple[int, int]:
        """Return the unit's next offsets of decisions and outcomes after this batch."""
        return (
            self.decisions[-1].offset + 1 if self.decisions else unit.next_decision,
            self.outcomes[-1].offset + 1 if self.outcomes else unit.next_outcome,
        )


@dataclass(slots=True, kw_only=True)
class Counts:
    """What a sink has done since it started."""

    records: int = 0
    flushes: int = 0
    transfers: int = 0
    dead_letters: int = 0
    conflicts: int = 0
    duplicates: int = 0
    in_doubt: int = 0
    fenced: int = 0
    gaps: int = 0
    retries: int = 0

    def add(self, other: Counts) -> None:
        """Add another's counts to these."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))
