"""What the ledger raises."""

from __future__ import annotations

from pathlib import Path


class LedgerError(Exception):
    """Base of the ledger's errors."""


class LedgerSchemaError(LedgerError):
    """The database is not at the revision that this program needs; the message names both."""

    def __init__(self, found: str | None, wanted: str | None) -> None:
        super().__init__(
            f"the ledger's schema is at revision {found}, not {wanted}: run `tollway migrate`"
        )
        self.found = found
        self.wanted = wanted


class LedgerTopicsError(LedgerError):
    """A topic is missing, or decisions and outcomes have different numbers of partitions."""


class LedgerKeyError(LedgerError):
    """The key that signs the ledger's heads cannot be had; the message names its file."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"the key of the ledger's heads, {path}: {reason}; set TOLLWAY_HEADS_KEY")
        self.path = path


class LedgerFencedError(LedgerError):
    """Another sink has claimed the partition; this one must not write it any more."""

    def __init__(self, partition: int, *, mine: int, found: int | None) -> None:
        super().__init__(f"partition {partition}: my epoch is {mine}, the ledger's is {found}")
        self.partition = partition


class LedgerHaltError(LedgerError):
    """A partition stands still until somebody has looked; the others go on."""

    def __init__(self, partition: int, message: str) -> None:
        super().__init__(message)
        self.partition = partition


class LedgerGapError(LedgerHaltError):
    """Records that the ledger has not seen are gone from a topic."""

    def __init__(self, topic: str, partition: int, *, wanted: int, found: str) -> None:
        super().__init__(
            partition, f"{topic}[{partition}]: the next record is {wanted}, but {found}"
        )
        self.topic = topic


class LedgerCorruptError(LedgerHaltError):
    """The ledger already holds rows that only this sink could have written, and has not."""

    def __init__(self, partition: int, constraint: str) -> None:
        super().__init__(
            partition, f"partition {partition}: rows that were never booked break {constraint}"
        )
        self.constraint = constraint
