"""The chain of hashes over what was booked; pure.

Each write into a partition's journals adds one *link*. It says where the partition stood
afterwards, holds a SHA-256 of the rows that were written into each journal, and a SHA-256 of all
that together with the hash of the link before. So a row that is changed, removed, added or moved
contradicts its link, and a link that is changed contradicts the one after it. Who can write the
database can hash the whole chain anew: what stands against that are the heads that
:mod:`streams.ledger.heads` signs and publishes where the database's role cannot write.

A journal's digest is taken over the rows as binary COPY sends and returns them, header and
trailer included, in the order of line or offset.
"""

from __future__ import annotations

import hashlib
import struct
from datetime import UTC, datetime
from typing import Final, NamedTuple

from psycopg.copy import LibpqWriter

COPY_HEADER: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
COPY_TRAILER: Final = b"\xff\xff"
NOTHING: Final = hashlib.sha256().digest()
"""The digest of a journal that a link has not written to."""
ORIGIN: Final = bytes(32)
"""What stands for the hash before the first link."""

_PLACE = struct.Struct(">iqqqqqq")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Link(NamedTuple):
    """One link: the partition's next offsets and line after it, and its digests.

    Link 0 holds no rows: it opens the chain where the ledger stood.
    """

    partition: int
    link: int
    epoch: int
    next_decision: int
    next_outcome: int
    next_line: int
    booked_at: datetime
    decisions_sha256: bytes
    outcomes_sha256: bytes
    transfers_sha256: bytes
    sha256: bytes


def seal(before: bytes, link: Link) -> Link:
    """Return the link with its hash, ``before`` being that of the link before.

    Examples
    --------
    >>> digests = (NOTHING, NOTHING, NOTHING, b"")
    >>> link = seal(ORIGIN, Link(0, 0, 1, 0, 0, 0, datetime(2026, 1, 1, tzinfo=UTC), *digests))
    >>> link.sha256 == seal(ORIGIN, link).sha256 != seal(ORIGIN, link._replace(epoch=2)).sha256
    True
    """
    since = link.booked_at - _EPOCH
    microseconds = (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
    place = _PLACE.pack(*link[:6], microseconds)
    content = hashlib.sha256(before + place)
    for digest in link[7:10]:
        content.update(digest)
    return link._replace(sha256=content.digest())


class DigestingWriter(LibpqWriter):
    """Takes the SHA-256 of all that a COPY sends."""

    def __init__(self, cursor: object) -> None:
        super().__init__(cursor)  # type: ignore[arg-type]
        self._content = hashlib.sha256()
        self._size = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send a block of rows."""
        self._content.update(data)
        self._size += len(data)
        super().write(data)

    def digest(self) -> bytes:
        """Return the digest of what was sent, once that has ended."""
        if self._size <= len(COPY_HEADER) + len(COPY_TRAILER):
            return NOTHING
        return self._content.digest()
