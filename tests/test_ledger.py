"""The ledger on a real Postgres: bookings, fencing, commits in doubt, audits, migrations."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import typer
from typer.testing import CliRunner

from policy.calendar import window_end_ms, window_start_ms
from streams.commands import ledger as commands
from streams.config import Config
from streams.explain.ledger_places import find_places
from streams.ledger import migrate
from streams.ledger.audit import AUDITS, UnknownAuditError, UnknownNameError, run_audit
from streams.ledger.catalog import write_catalog
from streams.ledger.database import connection_string
from streams.ledger.errors import LedgerCorruptError, LedgerFencedError, LedgerSchemaError
from streams.ledger.rows import Raw
from streams.ledger.unit import Batch
from streams.records import (
    BudgetEntry,
    Outcome,
    PriceEntry,
    Seen,
    decision_id,
    encode,
)
from tests.ledger_books import (
    T0,
    TTL_MS,
    CommitCutter,
    Topics,
    decision,
    emptied,
    ledger,
    usage,
)

pytestmark = pytest.mark.postgres


@pytest.fixture(scope="module")
def ledger_url(postgres: str) -> Iterator[str]:
    with ledger(postgres) as url:
        yield url


@pytest.fixture
def topics(ledger_url: str) -> Iterator[Topics]:
    with emptied(ledger_url) as topics:
        yield topics


def test_what_a_flush_reads_does_not_grow_with_the_ledger(topics: Topics) -> None:
    # No statistics yet: by those the planner would find the right index by itself.
    for start in range(0, 500, 50):
        names = [f"r{number}" for number in range(start, start + 50)]
        topics.writer.flush(topics.unit, topics.batch(*map(decision, names)))
        topics.unit.cases.clear()
        topics.writer.flush(topics.unit, topics.batch(*(usage(name, 400) for name in names)))
    topics.writer.connection.execute("SELECT pg_stat_force_next_flush()")
    read = "SELECT indexrelname, idx_tup_read FROM pg_stat_user_indexes WHERE schemaname = 'public'"
    found = dict(topics.writer.connection.execute(read).fetchall())
    assert (found["pk_outcomes"], found["pk_transfers"]) == (0, 0)
    assert found["pk_decisions"] == 500
    assert topics.wrong() == {}


@pytest.mark.parametrize("together", [True, False], ids=["one-flush", "flush-each"])
@pytest.mark.parametrize("outcome_first", [True, False], ids=["outcome-first", "decision-first"])
@pytest.mark.parametrize(
    ("tokens", "after_ms", "booked"),
    [
        pytest.param(400, 1, {"reserve": 1_000, "settle": 400, "release": 600}, id="settle"),
        pytest.param(1_000, 1, {"reserve": 1_000, "settle": 1_000}, id="all-of-it"),
        pytest.param(1_300, 1, {"reserve": 1_000, "settle": 1_000, "overrun": 300}, id="overrun"),
        pytest.param(
            400,
            TTL_MS + 1,
            {"reserve": 1_000, "expire": 1_000, "adjust": 1_000, "settle": 400, "release": 600},
            id="late",
        ),
    ],
)
def test_bookings_do_not_depend_on_the_order_of_the_topics(
    topics: Topics,
    tokens: int,
    after_ms: int,
    booked: dict[str, int],
    outcome_first: bool,
    together: bool,
) -> None:
    first = topics.batch(decision("r1"))
    second = topics.batch(usage("r1", tokens), at_ms=T0 + after_ms)
    if together:
        topics.writer.flush(topics.unit, Batch(decisions=first.decisions, outcomes=second.outcomes))
    else:
        for batch in (second, first) if outcome_first else (first, second):
            topics.unit.cases.clear()
            topics.writer.flush(topics.unit, batch)
    assert topics.booked("r1") == booked
    assert topics.wrong() == {}


def test_a_reservation_expires_by_the_outcomes_clock_and_is_trued_up_once(topics: Topics) -> None:
    topics.book(decision("r1"), decision("r2"), usage("r2", 10))
    topics.book(usage("other", 1), at_ms=T0 + TTL_MS)
    assert "expire" not in topics.booked("r1")
    topics.book(b"unreadable, but the clock goes on", at_ms=T0 + TTL_MS + 1)
    assert topics.booked("r1") == {"reserve": 1_000, "expire": 1_000}
    assert "expire" not in topics.booked("r2")
    # A decision that is read after its time has passed has expired at once.
    topics.book(decision("r3"))
    assert topics.booked("r3") == {"reserve": 1_000, "expire": 1_000}
    topics.book(usage("r1", 300), usage("r1", 300), at_ms=T0 + TTL_MS + 2)
    assert topics.booked("r1") == {
        "reserve": 1_000,
        "expire": 1_000,
        "adjust": 1_000,
        "settle": 300,
        "release": 700,
    }
    balances = {row[1]: row[5] for row in run_audit(topics.url, "balances").rows}
    assert balances == {"available": -1_310, "expired": 1_000, "reserved": 0, "spent": 310}
    assert topics.wrong() == {}


def test_the_first_record_counts_and_others_are_copies_or_conflicts(topics: Topics) -> None:
    topics.book(decision("r1"), usage("r1", 100, reward=0.5))
    topics.book(
        decision("r1"),
        decision("r1", reserved_nanousd=5),
        usage("r1", 100),
        usage("r1", 200, reward=0.5),
        usage("unknown", 1),
        Outcome(request_id="r1", decision_id=decision_id("acme", "unknown"), reward=0.5),
    )
    assert topics.booked("r1") == {"reserve": 1_000, "settle": 100, "release": 900}
    assert topics.rows("SELECT topic, duplicates FROM cursors ORDER BY topic") == [
        ("d", 1),
        ("o", 2),
    ]
    found = "SELECT topic, record_offset, part, reason, first_offset FROM conflicts ORDER BY 1, 2"
    assert topics.rows(found) == [
        ("d", 2, "decision", "other_content", 0),
        ("o", 2, "usage", "other_usage", 0),
        ("o", 4, "reward", "other_decision", 0),
    ]
    unmatched = run_audit(topics.url, "unmatched").rows
    assert [row[:3] for row in unmatched] == [["no_decision", 0, 3], ["other_decision", 0, 4]]
    assert topics.wrong() == {}


def test_an_outcome_waits_for_its_decision_for_a_minute(topics: Topics) -> None:
    topics.book(usage("r1", 100), usage("r2", 100))
    topics.book(usage("r2", 200), at_ms=T0 + 1)
    topics.book(decision("r1", at_ms=T0 + 60_000), decision("r2", at_ms=T0 + 60_001))
    assert topics.booked("r1")["settle"] == 100
    # The first outcome came too early to count, so the second is the first that does.
    assert topics.booked("r2")["settle"] == 200
    assert topics.rows("SELECT record_offset, reason FROM conflicts") == [(1, "too_early")]


def test_rejections_and_unreadable_records_move_no_money(topics: Topics) -> None:
    rejected = decision("r1", arm=None, rejected="budget", price=None, reserved_nanousd=0)
    topics.book(rejected, usage("r1", 5), b"{", b'{"request_id":"r1","unknown":1}')
    topics.book(b'{"decision_id":1}', topic=0)
    assert topics.rows("SELECT rejected FROM decisions") == [("budget",)]
    assert topics.rows("SELECT count(*) FROM transfers") == [(0,)]
    letters = "SELECT topic, record_offset, reason, size FROM dead_letters ORDER BY 1, 2"
    assert topics.rows(letters) == [
        ("d", 1, "wrong_type", 17),
        ("o", 1, "undecodable", 1),
        ("o", 2, "unknown_field", 31),
    ]


@pytest.mark.parametrize("together", [True, False], ids=["one-flush", "flush-each"])
def test_roots_may_use_the_same_request_id_in_one_partition(topics: Topics, together: bool) -> None:
    batches = [
        topics.batch(decision("r1"), decision("r1", root="beta"), decision("r1", root="beta")),
        topics.batch(usage("r1", 100), usage("r2", 7)),
        topics.batch(usage("r1", 300, reward=0.5), usage("r1", 300), key=b"beta"),
        topics.batch(usage("r1", 1), key=None),
        topics.batch(usage("r1", 1), key=b"\xff"),
        topics.batch(
            Outcome(request_id="r1", decision_id=decision_id("acme", "r1"), reward=1.0), key=b"beta"
        ),
        topics.batch(decision("r2", root="beta"), decision("r2")),
    ]
    if together:
        outcomes = [raw for batch in batches for raw in batch.outcomes]
        decisions = [raw for batch in batches for raw in batch.decisions]
        batches = [Batch(decisions=decisions, outcomes=outcomes)]
    for batch in batches:
        topics.unit.cases.clear()
        topics.writer.flush(topics.unit, batch)
    assert topics.booked("r1") == {"reserve": 1_000, "settle": 100, "release": 900}
    assert topics.booked("r1", root="beta") == {"reserve": 1_000, "settle": 300, "release": 700}
    assert topics.booked("r2")["settle"] == 7
    assert topics.booked("r2", root="beta") == {"reserve": 1_000}
    spent = {row[0]: row[4] for row in run_audit(topics.url, "spend").rows}
    assert (spent["acme"], spent["beta"]) == (107, 300)
    duplicates = "SELECT duplicates FROM cursors ORDER BY topic"
    assert topics.rows(duplicates) == [(1,), (1,)]
    conflicts = "SELECT record_offset, part, reason, decision_id FROM conflicts"
    beta = decision_id("beta", "r1")
    assert topics.rows(conflicts) == [(6, "reward", "other_decision", beta)]
    unmatched = [row[:3] for row in run_audit(topics.url, "unmatched").rows]
    assert unmatched == [["no_decision", 0, 4], ["no_decision", 0, 5], ["other_decision", 0, 6]]
    assert topics.wrong() == {}
    found = find_places(topics.url, "r1", "beta")
    assert (found.problem, [row["decision_id"] for row in found.rows]) == ("", [beta])
    assert [transfer.amount_nanousd for transfer in found.transfers] == [1_000, 300, 700]
    assert (found.outcome_offsets, [c.offset for c in found.conflicts]) == ([2, 3, 6], [6])
    assert find_places(topics.url, "r1", "acme").conflicts == []
    assert [row["budget"] for row in find_places(topics.url, "r1", None).rows] == [
        "acme/search/key",
        "beta/search/key",
    ]


def test_what_is_not_its_requests_or_not_its_partitions_is_refused(topics: Topics) -> None:
    # Of eight partitions "acme" has number 4, and "beta" another.
    fourth = Topics(topics.url, partition=4, partitions=8)
    fourth.book(
        decision("r1", decision_id=decision_id("beta", "r1")),
        decision("r2", root="beta"),
        decision("r3"),
    )
    fourth.book(usage("r3", 5), key=b"beta")
    fourth.book(usage("r3", 6))
    assert fourth.booked("r3") == {"reserve": 1_000, "settle": 6, "release": 994}
    letters = "SELECT topic, record_offset, reason FROM dead_letters ORDER BY 1, 2"
    assert fourth.rows(letters) == [
        ("d", 0, "wrong_decision_id"),
        ("d", 1, "wrong_partition"),
        ("o", 0, "wrong_partition"),
    ]
    assert fourth.rows("SELECT request_id FROM decisions") == [("r3",)]
    assert fourth.rows("SELECT outcome_offset FROM outcomes") == [(1,)]
    assert fourth.wrong() == {}
    fourth.writer.close()


def test_what_the_database_refuses_is_unrolled_and_dead_lettered(topics: Topics) -> None:
    """A request that another partition has booked, when there was only one of them."""
    topics.book(decision("r2"))
    fourth = Topics(topics.url, partition=4, partitions=8)
    fourth.book(decision("r1"), decision("r2"), decision("r3"), usage("r3", 7))
    assert fourth.booked("r1") and fourth.booked("r3")["settle"] == 7
    assert fourth.booked("r2") == {"reserve": 1_000}
    assert fourth.rows("SELECT partition, record_offset, reason, detail FROM dead_letters") == [
        (4, 1, "refused", "UniqueViolation 23505")
    ]
    cursors = "SELECT next_offset FROM cursors WHERE partition = 4 ORDER BY topic"
    assert fourth.rows(cursors) == [(3,), (1,)]
    assert fourth.wrong() == {}
    fourth.writer.close()


def test_rows_that_no_sink_booked_halt_the_partition(topics: Topics) -> None:
    """Dead-lettering would lose good records for a fault that is not theirs."""
    topics.book(decision("r1"), usage("r1", 1))
    with psycopg.connect(connection_string(topics.url)) as connection:
        connection.execute("UPDATE cursors SET next_line = 0")
    with pytest.raises(LedgerCorruptError, match="pk_transfers"):
        topics.book(decision("r2"))
    assert topics.rows("SELECT count(*) FROM dead_letters") == [(0,)]
    assert topics.rows("SELECT next_offset FROM cursors WHERE topic = 'd'") == [(1,)]


def test_an_older_writer_is_fenced_off(topics: Topics) -> None:
    older, batch = topics, topics.batch(decision("r1"))
    newer = Topics(topics.url)
    newer.offsets = [0, 0]
    with pytest.raises(LedgerFencedError):
        older.writer.flush(older.unit, batch)
    newer.writer.flush(newer.unit, batch)
    with pytest.raises(LedgerFencedError):
        older.writer.flush(older.unit, batch)
    assert older.writer.counts.fenced == 2
    assert newer.rows("SELECT epoch, count(*) FROM transfers GROUP BY epoch") == [(2, 1)]
    newer.writer.close()


@pytest.mark.parametrize(("forward", "in_doubt"), [(True, 1), (False, 0)], ids=["reply", "commit"])
def test_a_commit_in_doubt_is_looked_up_and_not_repeated(
    topics: Topics, forward: bool, in_doubt: int
) -> None:
    cutter = CommitCutter(topics.url, forward=forward)
    try:
        cut = Topics(cutter.url)
        batch = cut.batch(decision("r1"), usage("r1", 100))
        with pytest.raises(psycopg.OperationalError):
            cut.writer.flush(cut.unit, batch)
        cut.writer.flush(cut.unit, batch)
        cut.book(decision("r1"), decision("r2"), usage("r2", 7))
        cut.writer.close()
    finally:
        cutter.close()
    assert cutter.cuts == 1
    assert (cut.writer.counts.in_doubt, cut.writer.counts.fenced) == (in_doubt, 0)
    assert topics.booked("r1") == {"reserve": 1_000, "settle": 100, "release": 900}
    assert topics.rows("SELECT topic, next_offset, duplicates FROM cursors ORDER BY topic") == [
        ("d", 3, 1),
        ("o", 2, 0),
    ]
    assert topics.wrong() == {}


def test_a_restored_database_is_not_taken_for_a_commit_in_doubt(topics: Topics) -> None:
    topics.book(decision("r1"), decision("r2"))
    with psycopg.connect(connection_string(topics.url)) as connection:
        connection.execute("UPDATE cursors SET next_offset = 1 WHERE topic = 'd'")
    with pytest.raises(LedgerFencedError):
        topics.book(decision("r3"))


@pytest.mark.parametrize("table", ["transfers", "decisions", "outcomes"])
@pytest.mark.parametrize(
    "statement", ["UPDATE {} SET request_id = 'x'", "DELETE FROM {}", "TRUNCATE {}"]
)
def test_the_journal_is_append_only(topics: Topics, table: str, statement: str) -> None:
    topics.book(decision("r1"), usage("r1", 1))
    with (
        psycopg.connect(connection_string(topics.url)) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege, match="append-only"),
    ):
        connection.execute(statement.format(table).encode())


def test_migrations_go_up_and_down_and_match_the_tables(database_url: str) -> None:
    with pytest.raises(LedgerSchemaError, match="tollway migrate"):
        migrate.require_head(database_url)
    migrate.upgrade(database_url)
    migrate.upgrade(database_url)
    migrate.require_head(database_url)
    migrate.check(database_url)
    migrate.downgrade(database_url)
    left = """
        SELECT (SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace
                AND relname NOT LIKE 'alembic_version%'),
            (SELECT count(*) FROM pg_proc WHERE pronamespace = 'public'::regnamespace)
    """
    with psycopg.connect(connection_string(database_url)) as connection:
        assert connection.execute(left).fetchone() == (0, 0)
    migrate.upgrade(database_url)
    migrate.check(database_url)


def test_windows_in_the_database_are_those_of_the_calendar(topics: Topics) -> None:
    instants = [0, 1, 345_599_999, 345_600_000, T0, T0 + 86_399_999, 1_709_251_199_999]
    for window in ("hour", "day", "week", "month", "total", "90s", "86400s"):
        for at_ms in instants:
            wanted = (window_start_ms(window, at_ms), window_end_ms(window, at_ms))
            call = f"('{window}', {at_ms})"
            assert topics.rows(f"SELECT window_start_ms{call}, window_end_ms{call}") == [wanted]


def catalog(topics: Topics, *entries: BudgetEntry | PriceEntry, start: int = 0) -> None:
    rows = [(b"", Raw(start + i, T0, encode(entry))) for i, entry in enumerate(entries)]
    write_catalog(topics.url, "c", rows)


def seen(*, outcomes: int, catalog: int = 100) -> Seen:
    return Seen(0, 0, outcomes, catalog, 0)


def test_caps_follow_the_order_in_which_the_worker_saw_the_records(topics: Topics) -> None:
    """Three reservations fit one after another, though the sink reads the decisions first."""
    catalog(topics, BudgetEntry(budget="acme", limit_nanousd=1_900, window="day"))
    topics.book(
        decision("r1", offsets=seen(outcomes=0)),
        decision("r2", offsets=seen(outcomes=1)),
        decision("r3", offsets=seen(outcomes=2)),
    )
    topics.book(usage("r1", 400), usage("r2", 200))
    assert run_audit(topics.url, "caps").rows == []
    # One more while r3 is in flight holds 400 + 200 + 1,000 + 1,000.
    topics.book(decision("r4", offsets=seen(outcomes=2)))
    answer = run_audit(topics.url, "caps")
    columns = ("budget", "limit_nanousd", "held_nanousd", "over_nanousd", "request_id")
    over = [dict(zip(answer.columns, row, strict=True)) for row in answer.rows]
    assert [tuple(row[c] for c in columns) for row in over] == [("acme", 1_900, 2_600, 700, "r4")]
    assert answer.wrong == 1
    assert run_audit(topics.url, "caps", budget="acme/search").rows == []


def test_a_cap_is_the_limit_that_the_decision_had_seen_in_its_own_window(topics: Topics) -> None:
    catalog(topics, BudgetEntry(budget="acme", limit_nanousd=2_000, window="day"))
    catalog(topics, BudgetEntry(budget="acme", limit_nanousd=1_000, window="day"), start=5)
    topics.book(
        decision("r1", offsets=seen(outcomes=0, catalog=5)),
        decision("r2", offsets=seen(outcomes=0, catalog=5)),
        decision("r3", offsets=seen(outcomes=0, catalog=6), at_ms=T0 + 86_400_000),
    )
    assert run_audit(topics.url, "caps").rows == []
    topics.book(decision("r4", offsets=seen(outcomes=0, catalog=6), at_ms=T0 + 86_400_000))
    assert [row[6] for row in run_audit(topics.url, "caps").rows] == ["r4"]


def test_spend_utilisation_and_savings_are_of_every_level(topics: Topics) -> None:
    catalog(
        topics,
        BudgetEntry(budget="acme", limit_nanousd=10_000, window="day"),
        BudgetEntry(budget="acme/search", limit_nanousd=5_000, window="total"),
        PriceEntry(arm="small@x", version=1, input=1_000, output=1_000),
        PriceEntry(arm="large@x", version=1, input=5_000, output=5_000),
    )
    topics.book(decision("r1"), decision("r2"), decision("r3"), decision("r4"))
    topics.book(usage("r1", 300), usage("r2", 1_100))
    topics.book(b"", at_ms=T0 + TTL_MS + 1)
    far = T0 + 50 * 365 * 86_400_000
    topics.book(decision("r5", at_ms=T0 + TTL_MS, offsets=seen(outcomes=3), expires_ms=far))
    spend = run_audit(topics.url, "spend").rows
    assert spend == [
        [level, "small@x", "2027-01-15", 2, 1_300, 100, 1_400]
        for level in ("acme", "acme/search", "acme/search/key")
    ]
    answer = run_audit(topics.url, "utilisation", now_ms=T0 + TTL_MS)
    day, total = (dict(zip(answer.columns, row, strict=True)) for row in answer.rows)
    amounts = ("reserved_nanousd", "spent_nanousd", "expired_nanousd", "overrun_nanousd")
    assert [[row[name] for name in amounts] for row in (day, total)] == [
        [1_000, 1_300, 2_000, 100],
        [1_000, 1_300, 2_000, 100],
    ]
    # 3,400 of 5,000 are gone after ten minutes, so the rest lasts for another 282 seconds.
    assert total["used_share"] == 0.88
    assert str(total["projected_exhaustion"]).startswith("2027-01-15T08:14:42")
    assert day["used_share"] == 0.44
    saved = run_audit(topics.url, "savings", arm="large@x").rows
    assert saved == [["acme", 2, 1_400, 7_000, 5_600, 0.8]]
    states = [row[:4] for row in run_audit(topics.url, "reservations").rows]
    assert states == [
        ["expired", "acme/search/key", "small@x", "r3"],
        ["expired", "acme/search/key", "small@x", "r4"],
        ["open", "acme/search/key", "small@x", "r5"],
    ]
    assert [row[2] for row in run_audit(topics.url, "overruns").rows] == ["r2"]
    assert topics.wrong() == {}


def test_a_reservation_is_due_until_somebody_books_its_expiry(topics: Topics) -> None:
    # The views go by the clock of now, which is between these two.
    topics.book(decision("r1", at_ms=1_000), decision("r2", expires_ms=4_000_000_000_000))
    found = run_audit(topics.url, "reservations").rows
    assert [(row[3], row[0]) for row in found] == [("r1", "due"), ("r2", "open")]


def test_an_unknown_budget_or_arm_is_said_with_those_like_it(topics: Topics) -> None:
    catalog(
        topics,
        BudgetEntry(budget="other/deep/key", limit_nanousd=10),
        PriceEntry(arm="small@x", version=1, input=1, output=1),
    )
    topics.book(decision("r1"))
    # What was declared, what a request named, and every level above them.
    for budget in ("other/deep/key", "other/deep", "acme/search/key", "acme"):
        assert run_audit(topics.url, "caps", budget=budget).rows == []
    with pytest.raises(
        UnknownNameError, match=r"budget 'acme/serch'; is it acme/search\b"
    ) as found:
        run_audit(topics.url, "spend", budget="acme/serch")
    assert found.value.close[0] == "acme/search"
    assert run_audit(topics.url, "savings", arm="small@x").rows == []
    with pytest.raises(UnknownNameError, match=r"a price of arm 'smal@x'; is it small@x\?"):
        run_audit(topics.url, "savings", arm="smal@x")
    with pytest.raises(UnknownNameError, match=r"price of arm 'something-else'$"):
        run_audit(topics.url, "savings", arm="something-else")


@pytest.mark.parametrize(
    ("tampering", "audit"),
    [
        ("UPDATE transfers SET amount_nanousd = 101 WHERE kind = 'settle'", "rederived"),
        ("DELETE FROM transfers WHERE kind = 'release'", "rederived"),
        ("UPDATE decisions SET price_input = 2000", "rederived"),
        ("UPDATE transfers SET debit_account = 'spent:other' WHERE line = 1", "trial-balance"),
        ("UPDATE transfers SET amount_nanousd = 5000 WHERE line = 1", "trial-balance"),
        ("DELETE FROM transfers WHERE line = 0", "cursors"),
    ],
)
def test_audits_find_what_was_tampered_with(topics: Topics, tampering: str, audit: str) -> None:
    topics.book(decision("r1"), decision("r2"), usage("r1", 100))
    assert topics.wrong() == {}
    with psycopg.connect(connection_string(topics.url)) as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute(tampering.encode())
    assert audit in topics.wrong()


def test_the_commands_print_answers_and_exit_by_them(topics: Topics, tmp_path: Path) -> None:
    app = typer.Typer()
    commands.register(app)
    config = Config(home=tmp_path, kafka="127.0.0.1:1", database_url=topics.url)

    def run(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, arguments, obj=config)
        return result.exit_code, result.output

    assert run("migrate") == (0, "ledger: revision 0005\n")
    code, listing = run("audit")
    assert code == 0 and all(name in listing for name in (*AUDITS, "verify"))
    code, output = run("audit", "dead-letters")
    assert code == 0
    assert output == (
        "dead-letters: nothing that the sink could not book; what workers refused is in "
        "`tollway tail dead-letters --from-start`\n"
    )
    topics.book(decision("r1"), usage("r1", 1_200))
    code, output = run("audit", "overruns", "--json")
    assert code == 0
    assert json.loads(output)["rows"][0]["overrun_nanousd"] == 200
    assert "$0.000000200" in run("audit", "overruns")[1]
    catalog(topics, BudgetEntry(budget="acme", limit_nanousd=10))
    code, output = run("audit", "caps")
    assert code == 1 and "1 rows break a promise" in output
    assert run("audit", "nonsense")[0] == 2
    code, output = run("audit", "spend", "--budget", "acme/serch/key")
    assert code == 2 and "'acme/serch/key'; is it acme/search/key or " in output
    assert run("audit", "verify", "--budget", "acme")[0] == 2
    with pytest.raises(UnknownAuditError, match="needs an arm"):
        run_audit(topics.url, "savings")
    with pytest.raises(UnknownAuditError, match="compares with no arm"):
        run_audit(topics.url, "spend", arm="small@x")


def test_a_database_that_is_not_there_is_told_in_its_own_words(
    topics: Topics, tmp_path: Path
) -> None:
    app = typer.Typer()
    commands.register(app)
    server, _, _ = topics.url.rpartition("/")
    for url, reason in (
        (f"{server}/nowhere", 'database "nowhere" does not exist'),
        ("postgresql://me:word@127.0.0.1:1/x", "refused"),
    ):
        config = Config(home=tmp_path, kafka="127.0.0.1:1", database_url=url)
        done = CliRunner().invoke(app, ["audit", "spend"], obj=config)
        assert done.exit_code == 2
        assert reason in done.output.replace("\n", " ")
        assert "word" not in done.output.replace("password", "")
