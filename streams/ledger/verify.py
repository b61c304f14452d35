"""Proves the ledger against the topics: every record read again, folded, and compared."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import psycopg
from aiokafka import AIOKafkaConsumer

from streams.ledger.audit import count_wrong
from streams.ledger.chain_check import check_chain
from streams.ledger.database import connection_string
from streams.ledger.fold import ACCOUNTS
from streams.ledger.heads import read_heads
from streams.ledger.reference import Booking, Books, expected_books
from streams.ledger.reread import Reread
from streams.records import LedgerHead
from streams.stopping import stop_consumer
from streams.topics import DECISIONS, LEDGER_HEADS, OUTCOMES

FINDINGS_MAX = 50


@dataclass(slots=True, kw_only=True)
class Report:
    """What was compared, and what was found: the first findings in words, and their number."""

    partitions: int = 0
    decisions: int = 0
    outcomes: int = 0
    requests: int = 0
    transfers: int = 0
    spent_nanousd: int = 0
    overrun_nanousd: int = 0
    beyond_retention: int = 0
    links: int = 0
    heads: int = 0
    links_after_head: int = 0
    mismatches: int = 0
    findings: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether the ledger holds exactly what the topics say."""
        return self.mismatches == 0

    def find(self, finding: str) -> None:
        """Note a mismatch."""
        self.mismatches += 1
        if len(self.findings) < FINDINGS_MAX:
            self.findings.append(finding)

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON takes it."""
        return {"ok": self.ok, **asdict(self)}


async def verify(
    kafka: str,
    database_url: str,
    *,
    decisions: str = DECISIONS,
    outcomes: str = OUTCOMES,
    heads: str = LEDGER_HEADS,
    heads_key: bytes | None = None,
) -> Report:
    """Read both topics up to the ledger's cursors and compare what follows with what is booked.

    The sink may go on meanwhile: the ledger is read as it stands at the start. Requests whose
    records retention has deleted in part are counted and left out. The chain is compared with the
    heads that were published; with ``heads_key`` their signatures are checked, too.
    """
    report = Report()
    consumer = AIOKafkaConsumer(
        bootstrap_servers=kafka, enable_auto_commit=False, auto_offset_reset="earliest"
    )
    await consumer.start()
    try:
        # Before the snapshot: what was published by now must be in it.
        published, unreadable = await read_heads(consumer, heads)
        for offset in unreadable:
            report.find(f"{heads} offset {offset} is no head")
        with _snapshot(database_url) as database:
            claimed = _partitions(database, decisions, outcomes)
            for partition in sorted(published.keys() - claimed):
                report.find(f"partition {partition}: heads were published, the ledger has none")
            for partition in claimed:
                check = PartitionCheck(report, database, (decisions, outcomes), partition)
                await check.read(consumer)
                await asyncio.to_thread(check.compare)
                await asyncio.to_thread(
                    check.compare_chain, published.get(partition, []), heads_key
                )
            # What is older than the topics' retention, too: conservation and amounts.
            for name in ("trial-balance", "rederived"):
                if wrong := await asyncio.to_thread(count_wrong, database, name):
                    report.find(f"audit {name}: {wrong} rows break a promise")
    finally:
        await stop_consumer(consumer)
    return report


@contextmanager
def _snapshot(database_url: str) -> Iterator[psycopg.Cursor[Any]]:
    with psycopg.connect(connection_string(database_url)) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.read_only = True
        with connection.cursor() as cursor:
            yield cursor


def _partitions(database: psycopg.Cursor[Any], decisions: str, outcomes: str) -> list[int]:
    database.execute(
        "SELECT DISTINCT partition FROM cursors WHERE topic = ANY(%s) ORDER BY 1",
        [[decisions, outcomes]],
    )
    return [partition for (partition,) in database.fetchall()]


class PartitionCheck:
    """The comparison of one partition: what it finds goes into the report."""

    def __init__(
        self,
        report: Report,
        database: psycopg.Cursor[Any],
        topics: tuple[str, str],
        partition: int,
    ) -> None:
        self._report = report
        self._database = database
        self._topics = dict(zip(("decision", "outcome"), topics, strict=True))
        self._partition = partition
        self._reread = Reread(self._topics, partition)
        self._cursors = {
            topic: row
            for topic, *row in self._rows(
                "SELECT topic, next_offset, clock_ms, swept_ms, next_line, duplicates, holes "
                "FROM cursors WHERE partition = %s"
            )
        }

    async def read(self, consumer: AIOKafkaConsumer) -> None:
        """Read both topics up to the cursors."""
        nexts = {topic: self._cursors[topic][0] for topic in self._topics.values()}
        await self._reread.read(consumer, nexts)
        for kind, topic in self._topics.items():
            end = self._reread.logs[kind].end
            if end < nexts[topic]:
                self._find(f"{topic} ends at {end}, the ledger is at {nexts[topic]}")

    def compare(self) -> None:
        """Compare the records' consequences with the rows."""
        self._compare_dead_letters()
        next_line, swept_ms = self._cursors[self._topics["decision"]][3], self._swept_ms()
        books = expected_books(self._reread.decisions, self._reread.outcomes, swept_ms=swept_ms)
        self._report.partitions += 1
        self._report.decisions += len(self._reread.decisions)
        self._report.outcomes += len(self._reread.outcomes)
        self._report.requests += len(books.offsets)
        self._compare_bookings(books, next_line)
        if all(log.start == 0 for log in self._reread.logs.values()):
            self._compare_copies(books)
            self._compare_offsets()

    def compare_chain(self, heads: Sequence[LedgerHead], key: bytes | None) -> None:
        """Compare the rows with the chain, and that with the heads."""
        state = check_chain(self._database, self._partition, heads, key=key, find=self._find)
        self._report.links += state.links
        self._report.heads += state.heads
        self._report.links_after_head += max(state.links - 1 - state.covered, 0)

    def _swept_ms(self) -> int:
        _, clock_ms, swept_ms, *_ = self._cursors[self._topics["outcome"]]
        log = self._reread.logs["outcome"]
        if log.start == 0 and clock_ms != log.clock_ms:
            self._find(f"the clock is {clock_ms}, the records say {log.clock_ms}")
        return int(swept_ms)

    def _compare_dead_letters(self) -> None:
        """Find what one side took and the other did not, also what only the database refused."""
        for kind, topic in self._topics.items():
            log = self._reread.logs[kind]
            rows = self._rows(
                "SELECT record_offset FROM dead_letters WHERE partition = %s "
                "AND topic = %s AND record_offset >= %s",
                *(topic, log.start),
            )
            for offset in {offset for (offset,) in rows} ^ log.dead:
                self._find(f"{topic} offset {offset}: a dead letter on one side only")

    def _compare_bookings(self, books: Books, next_line: int) -> None:
        booked = self._booked(next_line)
        offsets = {}
        for identity, offset, budget, request_id in self._rows(
            "SELECT decision_id, decision_offset, budget, request_id FROM decisions "
            "WHERE partition = %s AND decision_offset >= %s",
            self._reread.logs["decision"].start,
        ):
            offsets[identity] = offset
            booked.setdefault(identity, Booking()).subjects.add((budget, request_id))
        for identity in booked.keys() | books.offsets.keys():
            found, offset = booked.get(identity, Booking()), offsets.get(identity)
            if self._is_beyond_retention(offset, found.sources):
                self._report.beyond_retention += 1
                continue
            wanted = books.subjects.get(identity)
            subjects = found.subjects if wanted is None else {wanted, *found.subjects}
            name = " or ".join(f"request {request} of {budget}" for budget, request in subjects)
            if len(subjects) > 1:
                self._find(f"decision {identity} is booked for {name}")
            if offset != books.offsets.get(identity):
                self._find(
                    f"{name}: decision at {offset} is in effect, "
                    f"the topic says {books.offsets.get(identity)}"
                )
            amounts = books.amounts.get(identity, {})
            if found.amounts != amounts:
                self._find(f"{name}: booked {found.amounts}, the topics say {amounts}")

    def _is_beyond_retention(
        self, decision_offset: int | None, sources: Sequence[tuple[str, int]]
    ) -> bool:
        starts = {self._topics[kind]: log.start for kind, log in self._reread.logs.items()}
        if max(starts.values()) == 0:
            return False
        return decision_offset is None or any(offset < starts[topic] for topic, offset in sources)

    def _booked(self, next_line: int) -> dict[str, Booking]:
        """Return the transfers by decision id, having checked their lines and accounts."""
        booked: dict[str, Booking] = {}
        line = 0
        for row in self._rows(
            "SELECT line, decision_id, kind, amount_nanousd, debit_account, credit_account, "
            "budget, request_id, source_topic, source_offset "
            "FROM transfers WHERE partition = %s ORDER BY line"
        ):
            found_line, identity, kind, amount, debit, credit, budget, request_id, *source = row
            if found_line != line:
                self._find(f"line {line} is missing, the next is {found_line}")
            line = found_line + 1
            accounts = tuple(f"{place}:{budget}" for place in ACCOUNTS[kind])
            if (debit, credit) != accounts:
                self._find(f"line {found_line}: a {kind} moved money from {credit} to {debit}")
            booking = booked.setdefault(identity, Booking())
            booking.amounts[kind] = amount
            booking.subjects.add((budget, request_id))
            booking.sources.append((source[0], source[1]))
            self._report.transfers += 1
            self._report.spent_nanousd += amount if kind == "settle" else 0
            self._report.overrun_nanousd += amount if kind == "overrun" else 0
        if line != next_line:
            self._find(f"lines end at {line}, the cursor says {next_line}")
        return booked

    def _compare_copies(self, books: Books) -> None:
        for kind, copies in (
            ("decision", books.decision_copies),
            ("outcome", books.outcome_copies),
        ):
            counted = self._cursors[self._topics[kind]][4]
            if counted != copies:
                self._find(f"{counted} copies of {kind}s are counted, there are {copies}")
        kinds = {topic: kind for kind, topic in self._topics.items()}
        found = {
            (kinds[topic], offset, part)
            for topic, offset, part in self._rows(
                "SELECT topic, record_offset, part FROM conflicts WHERE partition = %s"
            )
            if topic in kinds
        }
        for kind, offset, part in found ^ books.conflicts:
            self._find(f"{kind} at offset {offset}: a conflict of {part} on one side only")

    def _compare_offsets(self) -> None:
        """Account for every offset: a record that was read, or a hole."""
        for kind, topic in self._topics.items():
            next_offset, *_, holes = self._cursors[topic]
            records = self._reread.logs[kind].records
            if next_offset != records + holes:
                self._find(f"{topic}: {records} records and {holes} holes below {next_offset}")
        (rows,) = self._rows("SELECT count(*) FROM outcomes WHERE partition = %s")
        if rows[0] != len(self._reread.outcomes):
            self._find(f"{rows[0]} outcomes are stored, the topic has {len(self._reread.outcomes)}")

    def _rows(self, statement: str, *parameters: object) -> list[Any]:
        self._database.execute(statement, [self._partition, *parameters])
        return self._database.fetchall()

    def _find(self, finding: str) -> None:
        self._report.find(f"partition {self._partition}: {finding}")
