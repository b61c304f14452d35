"""Rows of one transaction on their way into the tables, and the links that seal them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from psycopg import Cursor

from streams.ledger import rows
from streams.ledger.chain import NOTHING, DigestingWriter, Link, seal
from streams.ledger.rows import Row, Target

_LINK = """
INSERT INTO links (partition, link, epoch, next_decision, next_outcome, next_line, booked_at,
    decisions_sha256, outcomes_sha256, transfers_sha256, sha256)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
"""


def insert_link(cursor: Cursor[Any], link: Link) -> None:
    """Write one link."""
    cursor.execute(_LINK, link)


class Journal:
    """What one transaction adds to a partition; ``last`` is the partition's last link so far."""

    def __init__(self, cursor: Cursor[Any], last: Link, *, epoch: int) -> None:
        self.last = last
        self.decisions: list[Row] = []
        self.outcomes: list[Row] = []
        self.transfers: list[Row] = []
        self.dead_letters: list[Row] = []
        self.conflicts: list[Row] = []
        self._cursor = cursor
        self._epoch = epoch
        self._links: list[Link] = []

    def write(
        self, *, next_decision: int, next_outcome: int, next_line: int, booked_at: datetime
    ) -> None:
        """Write the rows and forget them; the partition stands at these places afterwards."""
        link = self.last._replace(
            link=self.last.link + 1,
            epoch=self._epoch,
            next_decision=next_decision,
            next_outcome=next_outcome,
            next_line=next_line,
            booked_at=booked_at,
            decisions_sha256=self._copy(rows.DECISIONS, self.decisions),
            outcomes_sha256=self._copy(rows.OUTCOMES, self.outcomes),
            transfers_sha256=self._copy(rows.TRANSFERS, self.transfers),
        )
        self._copy(rows.DEAD_LETTERS, self.dead_letters)
        self._copy(rows.CONFLICTS, self.conflicts)
        self.last = seal(self.last.sha256, link)
        self._links.append(self.last)

    def close(self) -> None:
        """Write the links of what was written."""
        for link in self._links:
            insert_link(self._cursor, link)

    def _copy(self, target: Target, content: list[Row]) -> bytes:
        """Write the rows, forget them and return their digest.

        Plain COPY, not by way of a temporary table and ON CONFLICT: which records are copies is
        known by now, and a unique constraint that is broken nevertheless must not pass in silence.
        """
        if not content:
            return NOTHING
        writer = DigestingWriter(self._cursor)
        with self._cursor.copy(target.statement, writer=writer) as copy:
            copy.set_types(target.types)
            for row in content:
                copy.write_row(row)
        content.clear()
        return writer.digest()
