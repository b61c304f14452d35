"""What the ledger raises."""

from __future__ import annotations


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


class LedgerFencedError(LedgerError):
    """Another sink has claimed the partition; this one must not write it any more."""

    def __init__(self, partition: int, *, mine: int, found: int | None) -> None:
        super().__init__(f"partition {partition}: my epoch is {mine}, the ledger's is {found}")
        self.partition = partition


class LedgerGapError(LedgerError):
    """Records that the ledger has not seen are gone from a topic; the partition stands still."""

    def __init__(self, topic: str, partition: int, *, wanted: int, found: str) -> None:
        super().__init__(f"{topic}[{partition}]: the next record is {wanted}, but {found}")
        self.topic = topic
        self.partition = partition
