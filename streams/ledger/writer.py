"""Writes batches of records into the ledger, each in one transaction with the sink's cursors.

Partition ``p`` of decisions and partition ``p`` of outcomes are one unit. Whoever claims a unit
raises its epoch; a flush first moves the cursors from where this writer left them, in its own
epoch. If they are elsewhere, then either another writer has claimed the unit, or an earlier
attempt whose reply was lost had been committed after all: reading the cursors tells which.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import psycopg

from streams.failpoints import pass_point
from streams.ledger.cases import Cases
from streams.ledger.chain import NOTHING, ORIGIN, Link, seal
from streams.ledger.database import (
    connect_sink,
    corrupt_constraint,
    describe,
    is_copy,
    is_refusal,
)
from streams.ledger.errors import LedgerCorruptError, LedgerFencedError
from streams.ledger.journal import insert_link
from streams.ledger.readings import Readings, read_batch, refuse_batch
from streams.ledger.transaction import Transaction
from streams.ledger.unit import Batch, Counts, Unit
from streams.records import BadRecordError

log = logging.getLogger(__name__)

Connection = psycopg.Connection[tuple[Any, ...]]

_READ = "SELECT topic, epoch, next_offset FROM cursors WHERE topic = ANY(%s) AND partition = %s"
_LOCK = f"{_READ} ORDER BY topic FOR UPDATE"
_LAST_LINK = """
SELECT partition, link, epoch, next_decision, next_outcome, next_line, booked_at,
    decisions_sha256, outcomes_sha256, transfers_sha256, sha256
FROM links WHERE partition = %s ORDER BY link DESC LIMIT 1
"""
_OPENING = "SELECT next_line, now() FROM cursors WHERE topic = %s AND partition = %s"


class LedgerWriter:
    """One connection to the ledger; not to be used by two threads at once."""

    def __init__(
        self,
        database_url: str,
        *,
        decisions: str,
        outcomes: str,
        connect: Callable[[str], Connection] = connect_sink,
    ) -> None:
        self.counts = Counts()
        self._decisions = decisions
        self._outcomes = outcomes
        self._database_url = database_url
        self._connect = connect
        self._connection: Connection | None = None
        self._ahead: tuple[Batch, Readings] | None = None

    @property
    def connection(self) -> Connection:
        """The connection, opened anew if it was lost."""
        if self._connection is None or self._connection.closed:
            self._connection = self._connect(self._database_url)
        return self._connection

    def close(self) -> None:
        """Close the connection; the next use opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def claim(self, partition: int, *, partitions: int) -> Unit:
        """Take over one of ``partitions`` units: every older writer of it is fenced off."""
        topics = [self._decisions, self._outcomes]
        with self.connection.transaction(), self.connection.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO cursors (topic, partition) VALUES (%s, %s) ON CONFLICT DO NOTHING",
                [(topic, partition) for topic in sorted(topics)],
            )
            cursor.execute(_LOCK, [topics, partition])
            found = {topic: (epoch, offset) for topic, epoch, offset in cursor}
            epoch = 1 + max(epoch for epoch, _ in found.values())
            cursor.execute(
                "UPDATE cursors SET epoch = %s, halted = NULL "
                "WHERE topic = ANY(%s) AND partition = %s",
                [epoch, topics, partition],
            )
            nexts = (found[self._decisions][1], found[self._outcomes][1])
            link = self._last_link(cursor, partition)
            if link is None:
                link = self._open_chain(cursor, partition, epoch, nexts)
        pass_point("sink.after_claim")
        return Unit(
            partition=partition,
            partitions=partitions,
            epoch=epoch,
            next_decision=nexts[0],
            next_outcome=nexts[1],
            cases=Cases(partition),
            link=link,
        )

    def _last_link(self, cursor: psycopg.Cursor[Any], partition: int) -> Link | None:
        row = cursor.execute(_LAST_LINK, [partition]).fetchone()
        return None if row is None else Link._make(row)

    def _open_chain(
        self, cursor: psycopg.Cursor[Any], partition: int, epoch: int, nexts: tuple[int, int]
    ) -> Link:
        row = cursor.execute(_OPENING, [self._decisions, partition]).fetchone()
        assert row is not None
        digests = (NOTHING, NOTHING, NOTHING, b"")
        link = seal(ORIGIN, Link(partition, 0, epoch, *nexts, row[0], row[1], *digests))
        insert_link(cursor, link)
        return link

    def halt(self, unit: Unit, reason: str) -> None:
        """Note in the cursors why the unit stands still, unless another has it by now."""
        self.connection.execute(
            "UPDATE cursors SET halted = %s "
            "WHERE topic = ANY(%s) AND partition = %s AND epoch = %s",
            [reason, [self._decisions, self._outcomes], unit.partition, unit.epoch],
        )

    def flush(
        self, unit: Unit, batch: Batch, *, following: tuple[Unit, Batch] | None = None
    ) -> None:
        """Book the batch and move the unit past it, or past as much of it as was booked before.

        The batch must begin at the unit's next offsets. After an error the caller gives what
        remains of it again. The ``following`` batch, if one is known, is read while the server
        is busy with this one.

        Raises
        ------
        LedgerFencedError
            If another writer has claimed the unit.
        LedgerCorruptError
            If the ledger holds rows that no sink has booked.
        psycopg.Error
            If the database fails; what was written by then is durable or it is not.
        """
        try:
            ahead, self._ahead = self._ahead, None
            is_read = ahead is not None and ahead[0] is batch
            readings = ahead[1] if ahead is not None and is_read else read_batch(unit, batch)
            try:
                self._attempt(
                    unit, batch, readings, careful=False, meanwhile=partial(self._read, following)
                )
            except psycopg.errors.UniqueViolation as error:
                if not is_copy(error):
                    raise
                self._forget(unit)
                self._attempt(unit, batch, readings)
        except Exception as error:
            self._forget(unit)
            constraint = corrupt_constraint(error)
            if constraint is not None:
                raise LedgerCorruptError(unit.partition, constraint) from error
            if not is_refusal(error) or not (batch.decisions or batch.outcomes):
                raise
            log.warning("partition %d: %s: record by record", unit.partition, describe(error))
            self._unroll(unit, batch)

    def _read(self, following: tuple[Unit, Batch] | None) -> None:
        if following is not None:
            self._ahead = (following[1], read_batch(*following))

    def _attempt(
        self,
        unit: Unit,
        batch: Batch,
        readings: Readings,
        *,
        sweep: bool = True,
        careful: bool = True,
        meanwhile: Callable[[], None] | None = None,
    ) -> None:
        moved = behind = False
        with self.connection.transaction() as attempt, self.connection.cursor() as cursor:
            transaction = Transaction(
                cursor, unit, decisions=self._decisions, outcomes=self._outcomes
            )
            pass_point("sink.before_move")
            moved = transaction.move(batch)
            if not moved:
                # One of the two cursors may have been moved.
                raise psycopg.Rollback(attempt)
            pass_point("sink.before_copy")
            transaction.book(readings, careful=careful, meanwhile=meanwhile)
            if sweep:
                transaction.sweep()
            behind = transaction.finish()
            pass_point("sink.before_commit")
        if not moved:
            self._resolve(unit, batch)
            return
        pass_point("sink.after_commit")
        unit.next_decision, unit.next_outcome = batch.ends(unit)
        unit.link = transaction.link
        unit.behind = behind
        unit.cases.trim()
        self.counts.add(transaction.counts)

    def _resolve(self, unit: Unit, batch: Batch) -> None:
        """Find out why the cursors had moved; in this epoch, it was an attempt of this writer."""
        with self.connection.cursor() as cursor:
            cursor.execute(_READ, [[self._decisions, self._outcomes], unit.partition])
            found = {topic: (epoch, offset) for topic, epoch, offset in cursor}
            link = self._last_link(cursor, unit.partition)
        nothing = (None, -1)
        epochs, nexts = zip(
            found.get(self._decisions, nothing), found.get(self._outcomes, nothing), strict=True
        )
        before = (unit.next_decision, unit.next_outcome)
        between = all(
            low <= offset <= high
            for low, offset, high in zip(before, nexts, batch.ends(unit), strict=True)
        )
        # Cursors that went back belong to a database that was restored: as good as another's.
        if epochs != (unit.epoch, unit.epoch) or not between or link is None:
            self.counts.fenced += 1
            raise LedgerFencedError(unit.partition, mine=unit.epoch, found=epochs[0])
        log.info("partition %d: a commit without reply was durable", unit.partition)
        self.counts.in_doubt += 1
        unit.cases.clear()
        unit.next_decision, unit.next_outcome = nexts
        unit.link = link
        unit.behind = True

    def _unroll(self, unit: Unit, batch: Batch) -> None:
        """Book record by record; the database's refusals become dead letters."""
        singles = [Batch(decisions=[raw]) for raw in batch.decisions]
        singles += [Batch(outcomes=[raw]) for raw in batch.outcomes]
        for single in singles:
            try:
                self._attempt(unit, single, read_batch(unit, single), sweep=False)
            except Exception as error:
                self._forget(unit)
                if not is_refusal(error):
                    raise
                refusal = BadRecordError("refused", describe(error))
                self._attempt(unit, single, refuse_batch(single, refusal), sweep=False)

    def _forget(self, unit: Unit) -> None:
        # The cases have run ahead of the tables, and the connection may be in any state.
        unit.cases.clear()
        unit.behind = True
        self.close()
