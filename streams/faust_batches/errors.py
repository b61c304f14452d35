"""What can go wrong in the transport, each with a name."""

from __future__ import annotations


class TransportError(Exception):
    """Base of everything that this package raises on purpose."""


class UnsupportedVersionError(TransportError, ImportError):
    """A library is installed in another version than the one whose private parts are used."""

    def __init__(self, library: str, installed: str, needed: str) -> None:
        super().__init__(f"{library} {installed} is installed, but only {needed} is supported")
        self.library = library
        self.installed = installed
        self.needed = needed


class PartitionNotOwnedError(TransportError):
    """A partition's table was used by a worker that does not own the partition (any more)."""

    def __init__(self, table: str, partition: int) -> None:
        super().__init__(f"this worker does not own partition {partition} of table {table!r}")
        self.table = table
        self.partition = partition


class ChangelogOverlapError(TransportError):
    """Another worker has written to a changelog that this one believed to own."""

    def __init__(self, topic: str, partition: int, expected: int, found: int) -> None:
        super().__init__(
            f"{topic}/{partition}: wrote at {found}, expected {expected}: another worker writes too"
        )


class ValueTooLargeError(TransportError):
    """A table value would not fit into one Kafka record; nothing was written."""

    def __init__(self, table: str, key: bytes, size: int, size_max: int) -> None:
        super().__init__(f"{size} bytes for key {key!r} of table {table!r}, at most {size_max}")
        self.table = table
        self.key = key
        self.size = size


class PartitionCountError(TransportError):
    """A changelog does not have as many partitions as its table says."""

    def __init__(self, topic: str, found: int, wanted: int) -> None:
        super().__init__(f"{topic} has {found} partitions, but its table {wanted}")
        self.topic = topic
        self.found = found
        self.wanted = wanted


class ChangelogMissingError(TransportError):
    """Partitions were assigned without the changelog partitions that belong to them."""

    def __init__(self, partitions: list[str]) -> None:
        super().__init__(f"no changelog assigned for {', '.join(partitions)}")
        self.partitions = partitions


class RestoreStalledError(TransportError):
    """The broker gave no changelog record for too long, although some are missing."""

    def __init__(self, partitions: list[str], seconds: float) -> None:
        super().__init__(f"nothing read for {seconds:g} s from {', '.join(partitions)}")
        self.partitions = partitions


class BatchStuckError(TransportError):
    """An agent did not finish its batch in time for the partition to be given up."""

    def __init__(self, batches: list[str], seconds: float) -> None:
        super().__init__(f"still in an agent after {seconds:g} s: {', '.join(batches)}")
        self.batches = batches
