"""One flush: what a batch means, written in the transaction that moves the cursors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from psycopg import Cursor

from streams.ledger import rows, transfers
from streams.ledger.chain import Link
from streams.ledger.fold import Booked, Case, Copy, Reported
from streams.ledger.journal import Journal, Put
from streams.ledger.reading import reported
from streams.ledger.readings import Readings
from streams.ledger.rows import Raw, Row
from streams.ledger.unit import Batch, Counts, Unit
from streams.records import Outcome

SWEEP_MAX = 5_000
"""About how many reservations one flush looks at for having expired."""

_MOVE = """
UPDATE cursors SET next_offset = target.next_offset, holes = cursors.holes + target.holes
FROM (VALUES (%s, %s::bigint, %s::bigint, %s::bigint), (%s, %s, %s, %s))
    AS target (topic, expected, next_offset, holes)
WHERE cursors.topic = target.topic AND partition = %s AND epoch = %s
    AND cursors.next_offset = target.expected
RETURNING cursors.topic, clock_ms, swept_ms, next_line, now()
"""
_FINISH = """
UPDATE cursors SET clock_ms = target.clock_ms, swept_ms = target.swept_ms,
    next_line = target.next_line, duplicates = duplicates + target.copies
FROM (VALUES (%s, 0::bigint, 0::bigint, %s::bigint, %s::bigint), (%s, %s, %s, 0, %s))
    AS target (topic, clock_ms, swept_ms, next_line, copies)
WHERE cursors.topic = target.topic AND partition = %s
"""
_SWEEP_END = """
SELECT expires_ms FROM decisions
WHERE partition = %s AND arm IS NOT NULL AND expires_ms >= %s AND expires_ms < %s
ORDER BY expires_ms OFFSET %s LIMIT 1
"""
_SWEEP = """
SELECT decision_id FROM decisions d
WHERE partition = %s AND arm IS NOT NULL AND expires_ms >= %s AND expires_ms < %s
    AND NOT EXISTS (
        SELECT FROM transfers t WHERE t.decision_id = d.decision_id
            AND t.kind IN ('expire', 'settle')
    )
ORDER BY expires_ms, decision_offset
"""


class Transaction:
    """The rows of one batch. Its steps must be called in this order: move, book, finish."""

    def __init__(self, cursor: Cursor[Any], unit: Unit, *, decisions: str, outcomes: str) -> None:
        self.counts = Counts()
        self._cursor = cursor
        self._unit = unit
        self._topics = {"decision": decisions, "outcome": outcomes}
        self._duplicates = {"decision": 0, "outcome": 0}
        self._clock_ms = self._swept_ms = self._line = 0
        self._nexts = (unit.next_decision, unit.next_outcome)
        self._booked_at = unit.link.booked_at
        self._journal = Journal(cursor, unit.link, epoch=unit.epoch)

    @property
    def link(self) -> Link:
        """The partition's last link."""
        return self._journal.last

    def move(self, batch: Batch) -> bool:
        """Move the cursors past the batch; False if they are not where this writer left them.

        It comes first: the row locks hold up any other writer until this one has ended.
        """
        unit = self._unit
        self._nexts = next_decision, next_outcome = batch.ends(unit)
        arguments = (
            *(self._topics["decision"], unit.next_decision, next_decision),
            next_decision - unit.next_decision - len(batch.decisions),
            *(self._topics["outcome"], unit.next_outcome, next_outcome),
            next_outcome - unit.next_outcome - len(batch.outcomes),
        )
        self._cursor.execute(_MOVE, [*arguments, unit.partition, unit.epoch])
        found = {topic: row for topic, *row in self._cursor}
        if len(found) != 2:
            return False
        self._clock_ms, self._swept_ms, *_ = found[self._topics["outcome"]]
        *_, self._line, self._booked_at = found[self._topics["decision"]]
        return True

    def book(
        self,
        readings: Readings,
        *,
        careful: bool = True,
        meanwhile: Callable[[], None] | None = None,
    ) -> None:
        """Write all that follows from what was read.

        Not ``careful``, it takes decisions that are not in memory for new ones: that they are
        almost always, and where not, their primary key refuses the transaction. ``meanwhile`` may
        be done while the server is busy.
        """
        decisions, outcomes, refused, clock_ms = readings
        cases, partition = self._unit.cases, self._unit.partition
        decided = [decision.decision_id for _, _, decision in decisions]
        touched = [request for _, _, request, _ in outcomes]
        waiting = cases.load(self._cursor, touched, decided, careful=careful)
        for cause, raw, error in refused:
            letter = rows.dead_letter_row(self._topics[cause], partition, raw, error)
            self._journal.dead_letters.append(letter)
        if decisions:
            with self._journal.decisions() as put:
                for raw, row, decision in decisions:
                    late = waiting.pop(decision.decision_id, ()) if waiting else ()
                    self._decide(raw, row, decision, late, put)
        if outcomes:
            with self._journal.outcomes() as put:
                for entry in outcomes:
                    self._report(*entry, put)
        self._clock_ms = max(self._clock_ms, clock_ms)
        records = len(decisions) + len(outcomes) + len(refused)
        self.counts.records += records
        if records:
            self._write(meanwhile)

    def sweep(self) -> None:
        """Book what has expired by the partition's clock; a bounded part of it at a time."""
        if self._swept_ms >= self._clock_ms:
            return
        partition, start_ms, end_ms = self._unit.partition, self._swept_ms, self._clock_ms
        self._cursor.execute(_SWEEP_END, [partition, start_ms, end_ms, SWEEP_MAX])
        beyond = self._cursor.fetchone()
        if beyond is not None:
            end_ms = max(beyond[0], start_ms + 1)
        self._cursor.execute(_SWEEP, [partition, start_ms, end_ms])
        lapsed = [decision_id for (decision_id,) in self._cursor]
        self._swept_ms = end_ms
        if not lapsed:
            return
        self._unit.cases.load(self._cursor, lapsed)
        for decision_id in lapsed:
            case = self._unit.cases.get(decision_id)
            assert case is not None
            self._post(case)
        self._write()

    def finish(self) -> bool:
        """Note clock, lines and copies in the cursors; return whether expiry is still behind."""
        copies = self._duplicates
        self._cursor.execute(
            _FINISH,
            [
                *(self._topics["decision"], self._line, copies["decision"]),
                *(self._topics["outcome"], self._clock_ms, self._swept_ms, copies["outcome"]),
                self._unit.partition,
            ],
        )
        self._journal.close()
        self.counts.flushes += 1
        self.counts.duplicates += sum(self._duplicates.values())
        return self._swept_ms < self._clock_ms

    def _decide(
        self, raw: Raw, row: Row, decision: Booked, waiting: Sequence[Reported], put: Put
    ) -> None:
        known = self._unit.cases.get(decision.decision_id)
        if known is None:
            put(row)
            case = self._unit.cases.open(decision)
            for facts in waiting:
                self._note(facts, case.take(facts))
            self._post(case)
        elif known.decision.fingerprint == decision.fingerprint:
            self._duplicates["decision"] += 1
        else:
            self._contradict(
                "decision",
                (raw.offset, "decision", decision.decision_id, decision.request_id),
                ("other_content", known.decision.offset, raw.at_ms),
            )

    def _report(self, raw: Raw, outcome: Outcome, request: str, clock_ms: int, put: Put) -> None:
        facts = reported(
            outcome,
            decision_id=request,
            offset=raw.offset,
            at_ms=raw.at_ms,
            clock_ms=max(self._clock_ms, clock_ms),
        )
        put(rows.outcome_row(self._unit.partition, outcome, facts))
        case = self._unit.cases.get(request)
        if case is not None:
            self._note(facts, case.take(facts))
            self._post(case)

    def _note(self, facts: Reported, copies: list[Copy]) -> None:
        for copy in copies:
            if not copy.reason:
                self._duplicates["outcome"] += 1
                continue
            self._contradict(
                "outcome",
                (facts.offset, copy.part, facts.decision_id, facts.request_id),
                (copy.reason, copy.first_offset, facts.at_ms),
            )

    def _contradict(self, cause: str, place: Row, why: Row) -> None:
        row = (self._topics[cause], self._unit.partition, *place, *why)
        self._journal.conflicts.append(row)

    def _post(self, case: Case) -> None:
        postings = case.due(self._swept_ms)
        if postings:
            self._journal.transfers += transfers.encode(
                self._unit.partition,
                self._line,
                case.decision,
                postings,
                topics=self._topics,
                epoch=self._unit.epoch,
            )
            self._line += len(postings)

    def _write(self, meanwhile: Callable[[], None] | None = None) -> None:
        journal, (next_decision, next_outcome) = self._journal, self._nexts
        self.counts.transfers += len(journal.transfers)
        self.counts.dead_letters += len(journal.dead_letters)
        self.counts.conflicts += len(journal.conflicts)
        journal.write(
            next_decision=next_decision,
            next_outcome=next_outcome,
            next_line=self._line,
            booked_at=self._booked_at,
            meanwhile=meanwhile,
        )
