"""Rows of one transaction on their way into the tables, and the links that seal them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from psycopg import Cursor

from streams.ledger import rows
from streams.ledger.chain import (
    COPY_HEADER,
    COPY_TRAILER,
    NOTHING,
    DigestingWriter,
    Link,
    seal,
)
from streams.ledger.rows import Row, Target

Put = Callable[[Row], None]

_ROWS_A_BLOCK = 256
"""Rows that are sent at once: the server works on them while others are on their way."""

_LINK = """
INSERT INTO links (partition, link, epoch, next_decision, next_outcome, next_line, booked_at,
    decisions_sha256, outcomes_sha256, transfers_sha256, sha256)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
"""


def insert_link(cursor: Cursor[Any], link: Link) -> None:
    """Write one link."""
    cursor.execute(_LINK, link)


class Journal:
    """What one transaction adds to a partition; ``last`` is the partition's last link so far.

    Plain COPY, not by way of a temporary table and ON CONFLICT: which records are copies is
    known by then, and a unique constraint that is broken nevertheless must not pass in silence.
    """

    def __init__(self, cursor: Cursor[Any], last: Link, *, epoch: int) -> None:
        self.last = last
        self.transfers: list[bytes] = []
        self.dead_letters: list[Row] = []
        self.conflicts: list[Row] = []
        self._cursor = cursor
        self._epoch = epoch
        self._links: list[Link] = []
        self._decisions_sha256 = self._outcomes_sha256 = NOTHING

    @contextmanager
    def decisions(self) -> Iterator[Put]:
        """Take decisions, each on its way to the server at once: it works while rows are made."""
        with self._copying(rows.DECISIONS) as (put, writer):
            yield put
        self._decisions_sha256 = writer.digest()

    @contextmanager
    def outcomes(self) -> Iterator[Put]:
        """Take outcomes in the same way."""
        with self._copying(rows.OUTCOMES) as (put, writer):
            yield put
        self._outcomes_sha256 = writer.digest()

    def write(
        self,
        *,
        next_decision: int,
        next_outcome: int,
        next_line: int,
        booked_at: datetime,
        meanwhile: Callable[[], None] | None = None,
    ) -> None:
        """Write the other rows and forget them; the partition stands at these places afterwards.

        ``meanwhile`` is done while the server is busy with the last of the transfers.
        """
        transfers_sha256 = self._send(rows.TRANSFERS, self.transfers, meanwhile)
        self._copy(rows.DEAD_LETTERS, self.dead_letters)
        self._copy(rows.CONFLICTS, self.conflicts)
        link = self.last._replace(
            link=self.last.link + 1,
            epoch=self._epoch,
            next_decision=next_decision,
            next_outcome=next_outcome,
            next_line=next_line,
            booked_at=booked_at,
            decisions_sha256=self._decisions_sha256,
            outcomes_sha256=self._outcomes_sha256,
            transfers_sha256=transfers_sha256,
        )
        self._decisions_sha256 = self._outcomes_sha256 = NOTHING
        self.last = seal(self.last.sha256, link)
        self._links.append(self.last)

    def close(self) -> None:
        """Write the links of what was written."""
        for link in self._links:
            insert_link(self._cursor, link)

    def _send(
        self, target: Target, content: list[bytes], meanwhile: Callable[[], None] | None
    ) -> bytes:
        """Write rows that are encoded, forget them and return their digest."""
        if not content:
            return NOTHING
        writer = DigestingWriter(self._cursor)
        with self._cursor.copy(target.statement, writer=writer) as copy:
            copy.write(COPY_HEADER)
            for low in range(0, len(content), _ROWS_A_BLOCK):
                copy.write(b"".join(content[low : low + _ROWS_A_BLOCK]))
            copy.write(COPY_TRAILER)
            if meanwhile is not None:
                meanwhile()
        content.clear()
        return writer.digest()

    def _copy(self, target: Target, content: list[Row]) -> None:
        """Write rows that no digest is taken of, and forget them."""
        if content:
            with self._copying(target) as (put, _):
                for row in content:
                    put(row)
            content.clear()

    @contextmanager
    def _copying(self, target: Target) -> Iterator[tuple[Put, DigestingWriter]]:
        writer = DigestingWriter(self._cursor)
        with self._cursor.copy(target.statement, writer=writer) as copy:
            copy.set_types(target.types)
            yield copy.write_row, writer
