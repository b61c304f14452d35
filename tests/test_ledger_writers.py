"""Three writers fight for one partition, and commits get lost on the way: nothing is doubled."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from streams.ledger.chain_check import check_chain
from streams.ledger.database import connection_string
from streams.ledger.errors import LedgerFencedError
from streams.ledger.heads import sign
from streams.ledger.reference import SeenDecision, SeenOutcome, expected_books, identity_of
from streams.ledger.rows import Raw
from streams.ledger.unit import Batch, Unit
from streams.ledger.writer import LedgerWriter
from streams.records import Decision, LedgerHead, Outcome, encode
from tests.ledger_books import T0, TTL_MS, CommitCutter, decision, empty, ledger, usage

pytestmark = pytest.mark.postgres

KEY = bytes(range(32))
WRITERS = st.integers(0, 2)


@pytest.fixture(scope="module")
def cutter(postgres: str) -> Iterator[CommitCutter]:
    with ledger(postgres) as url:
        cutter = CommitCutter(url)
        yield cutter
        cutter.close()


class Writers(RuleBasedStateMachine):
    """The model: how much of the two topics is booked, and who claimed the partition last."""

    cutter: CommitCutter

    @initialize()
    def begin(self) -> None:
        empty(self.cutter.direct_url)
        self.cutter.armed = False
        self.writers = [
            LedgerWriter(self.cutter.url, decisions="d", outcomes="o") for _ in range(3)
        ]
        self.units: list[Unit | None] = [None, None, None]
        # Batches whose commits are in doubt: the writer has not looked yet what became of them.
        self.doubtful: dict[int, Batch] = {}
        self.watcher = psycopg.connect(connection_string(self.cutter.direct_url), autocommit=True)
        self.logs: tuple[list[Raw], list[Raw]] = ([], [])
        self.records: tuple[list[Decision], list[Outcome]] = ([], [])
        self.booked = (0, 0)
        self.epoch = 0
        self.heads: list[LedgerHead] = []

    def teardown(self) -> None:
        # One more writer books the rest, its commits lost on the way there and back; then the
        # books are those of the whole log.
        self.claim(0)
        self._append(decision("last"), T0 + 1)
        rest = Batch(decisions=self._rest(0), outcomes=self._rest(1))
        for cut in ("commit", "reply", None):
            self._book(0, rest, cut=cut)
        self._compare()
        for writer in self.writers:
            writer.close()
        self.watcher.close()

    @rule(request=st.integers(0, 5), variant=st.integers(0, 1), tokens=st.integers(0, 3))
    def append(self, request: int, variant: int, tokens: int) -> None:
        """A decision or, with tokens, an outcome; copies and contradictions come by themselves."""
        name = f"r{request}"
        record = (
            decision(name, reserved_nanousd=1_000 + variant)
            if not tokens
            else usage(name, 400 * tokens)
        )
        self._append(record, T0 + 1)

    @rule()
    def let_time_pass(self) -> None:
        """An outcome of nobody moves the clock past every reservation so far."""
        self._append(usage("nobody", 1), T0 + TTL_MS + 1)

    def _append(self, record: Decision | Outcome, at_ms: int) -> None:
        kind = int(isinstance(record, Outcome))
        log = self.logs[kind]
        log.append(Raw(len(log), at_ms, encode(record), b"acme"))
        self.records[kind].append(record)

    @rule(number=WRITERS)
    def claim(self, number: int) -> None:
        unit = self.writers[number].claim(0, partitions=1)
        self.epoch += 1
        assert unit.epoch == self.epoch
        assert (unit.next_decision, unit.next_outcome) == self.booked
        self.units[number] = unit
        self.doubtful.pop(number, None)
        self.heads.append(sign(KEY, unit.link))

    @precondition(lambda self: any(self.units))
    @rule(
        number=WRITERS,
        sizes=st.tuples(st.integers(0, 4), st.integers(0, 4)),
        cut=st.sampled_from([None, None, "commit", "reply"]),
    )
    def flush(self, number: int, sizes: tuple[int, int], cut: str | None) -> None:
        unit = self.units[number]
        if unit is None:
            return
        batch = Batch(
            decisions=self.logs[0][unit.next_decision :][: sizes[0]],
            outcomes=self.logs[1][unit.next_outcome :][: sizes[1]],
        )
        # As the sink: what may be booked already is given again, and nothing less.
        self._book(number, self.doubtful.get(number, batch), cut=cut)

    def _book(self, number: int, batch: Batch, *, cut: str | None) -> None:
        unit = self.units[number]
        assert unit is not None
        ends = batch.ends(unit)
        is_owner, cuts = unit.epoch == self.epoch, self.cutter.cuts
        self.cutter.armed, self.cutter.forward = cut is not None, cut == "reply"
        try:
            self.writers[number].flush(unit, batch)
        except LedgerFencedError:
            assert not is_owner
            self.units[number] = None
            self.doubtful.pop(number, None)
            return
        except psycopg.OperationalError:
            assert self.cutter.cuts == cuts + 1
            assert is_owner
            if cut == "reply":
                self.booked = ends
            self.doubtful[number] = batch
            return
        finally:
            self.cutter.armed = False
        assert is_owner
        self.booked = (unit.next_decision, unit.next_outcome)
        assert self.booked == ends
        self.doubtful.pop(number, None)
        self.heads.append(sign(KEY, unit.link))

    def _rest(self, kind: int) -> list[Raw]:
        return self.logs[kind][self.booked[kind] :]

    @invariant()
    def cursors_stand_where_the_model_does(self) -> None:
        # Waits for a transaction that was cut off before the server has noticed.
        rows = self.watcher.execute(
            "SELECT epoch, next_offset FROM cursors ORDER BY topic FOR UPDATE"
        ).fetchall()
        wanted = [(self.epoch, offset) for offset in self.booked]
        assert rows == (wanted if self.epoch else [])

    def _compare(self) -> None:
        """Compare rows and chain with the whole log."""
        clock_ms, seen_outcomes = 0, []
        for raw, outcome in zip(self.logs[1], self.records[1], strict=True):
            clock_ms = max(clock_ms, raw.at_ms)
            identity = identity_of(b"acme", outcome.request_id)
            seen_outcomes.append(SeenOutcome(raw.offset, identity, raw.at_ms, clock_ms, outcome))
        seen_decisions = [
            SeenDecision(raw.offset, record.decision_id, raw.value or b"", record)
            for raw, record in zip(self.logs[0], self.records[0], strict=True)
        ]
        findings: list[str] = []
        with self.watcher.cursor() as cursor:
            swept = cursor.execute("SELECT swept_ms FROM cursors WHERE topic = 'o'").fetchone()
            assert swept is not None
            books = expected_books(seen_decisions, seen_outcomes, swept_ms=swept[0])
            amounts: dict[str, dict[str, int]] = {}
            for name, kind, amount in cursor.execute(
                "SELECT decision_id, kind, amount_nanousd FROM transfers"
            ).fetchall():
                assert kind not in amounts.setdefault(name, {})
                amounts[name][kind] = amount
            conflicts = cursor.execute("SELECT topic, record_offset, part FROM conflicts")
            kinds = {"d": "decision", "o": "outcome"}
            found = {(kinds[topic], offset, part) for topic, offset, part in conflicts}
            copies = cursor.execute("SELECT duplicates FROM cursors ORDER BY topic").fetchall()
            check_chain(cursor, 0, self.heads, key=KEY, find=findings.append)
        assert amounts == books.amounts
        assert found == books.conflicts
        assert copies == [(books.decision_copies,), (books.outcome_copies,)]
        assert findings == []


def test_three_writers_book_every_record_once(cutter: CommitCutter) -> None:
    """Also that each head that was ever signed is in the chain at the end."""

    class OnThisLedger(Writers):
        pass

    OnThisLedger.cutter = cutter
    run_state_machine_as_test(
        OnThisLedger,
        settings=settings(
            max_examples=20,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
