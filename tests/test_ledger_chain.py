"""The chain over the ledger: whoever may do everything in the database is found out."""

from __future__ import annotations

import hashlib
import itertools
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest

from streams.ledger import rows
from streams.ledger.chain import Link, seal
from streams.ledger.chain_check import JOURNALS, check_chain
from streams.ledger.database import connect_sink, connection_string
from streams.ledger.errors import LedgerKeyError
from streams.ledger.heads import is_genuine, load_key, sign
from streams.ledger.roles import grant_sink
from streams.ledger.rows import Raw
from streams.ledger.unit import Batch
from streams.ledger.writer import LedgerWriter
from streams.records import LedgerHead, decode, encode
from tests.ledger_books import (
    T0,
    TTL_MS,
    CommitCutter,
    Topics,
    decision,
    emptied,
    ledger,
    tamper,
    usage,
)

pytestmark = pytest.mark.postgres

KEY = bytes(range(32))
OTHER_KEY = bytes(32)


@pytest.fixture(scope="module")
def ledger_url(postgres: str) -> Iterator[str]:
    with ledger(postgres) as url:
        yield url


@pytest.fixture
def topics(ledger_url: str) -> Iterator[Topics]:
    with emptied(ledger_url) as topics:
        yield topics


def found(url: str, heads: Sequence[LedgerHead] = (), *, partition: int = 0) -> list[str]:
    """Return what a check of the chain finds."""
    findings: list[str] = []
    with psycopg.connect(connection_string(url)) as connection, connection.cursor() as cursor:
        check_chain(cursor, partition, heads, key=KEY, find=findings.append)
    return findings


def book_three_flushes(topics: Topics) -> list[LedgerHead]:
    """Book lines 0 to 3, 4 to 7 and 8 to 9 in three links; return the heads of links 1 and 3."""
    topics.book(decision("r1"), decision("r2"), usage("r1", 100, reward=0.5))
    heads = [sign(KEY, topics.unit.link)]
    topics.book(decision("r3"), decision("r4"), usage("r3", 100, latency_ms=5))
    topics.book(decision("r5"), usage("r5", 1_000))
    return [*heads, sign(KEY, topics.unit.link)]


SHIFT = (
    "UPDATE transfers SET line = line + 100 WHERE line >= {0}",
    "UPDATE transfers SET line = line - 100 {1} WHERE line >= 100",
)
INSERT = (
    "INSERT INTO transfers SELECT partition, {0}, request_id, 'expire', debit_account, "
    "credit_account, amount_nanousd, decision_id, budget, root, arm, price_version, event_ms, "
    "booked_at, source_topic, source_offset, epoch FROM transfers WHERE line = 0"
)


@pytest.mark.parametrize(
    ("statements", "findings"),
    [
        pytest.param(
            ["UPDATE transfers SET amount_nanousd = amount_nanousd # 1 WHERE line = 5"],
            ["link 2, transfers, line 4 to 7: the 4 rows there are not what was booked"],
            id="flipped-bit",
        ),
        pytest.param(
            ["UPDATE decisions SET propensity = -propensity WHERE request_id = 'r5'"],
            ["link 3, decisions, decision_offset 4: the 1 rows there are not what was booked"],
            id="flipped-sign-of-zero",
        ),
        pytest.param(
            ["UPDATE outcomes SET latency_ms = latency_ms # 4 WHERE request_id = 'r3'"],
            ["link 2, outcomes, outcome_offset 1: the 1 rows there are not what was booked"],
            id="flipped-bit-of-an-outcome",
        ),
        pytest.param(
            ["UPDATE transfers SET booked_at = booked_at - interval '1 us' WHERE line = 8"],
            ["link 3, line 8 of transfers: not booked when the link was"],
            id="flipped-bit-of-a-time",
        ),
        pytest.param(
            ["DELETE FROM transfers WHERE line = 5"],
            ["link 2, transfers, line 4 to 7: the 3 rows there are not what was booked"],
            id="deleted-row",
        ),
        pytest.param(
            ["DELETE FROM outcomes WHERE request_id = 'r3'"],
            ["link 2, outcomes, outcome_offset 1: the 0 rows there are not what was booked"],
            id="deleted-outcome",
        ),
        pytest.param(
            [INSERT.format(10)],
            ["transfers, line 10: a row after the end of the chain"],
            id="inserted-after-the-end",
        ),
        pytest.param(
            [s.format(5, "+ 1") for s in SHIFT] + [INSERT.format(5)],
            [
                "link 2, transfers, line 4 to 7: the 4 rows there are not what was booked",
                "link 3, transfers, line 8 to 9: the 2 rows there are not what was booked",
                "transfers, line 10: a row after the end of the chain",
                "link 3, line 8 of transfers: not booked when the link was",
            ],
            id="inserted-between",
        ),
        pytest.param(
            [
                "UPDATE transfers SET line = 100 WHERE line = 6",
                "UPDATE transfers SET line = 6 WHERE line = 7",
                "UPDATE transfers SET line = 7 WHERE line = 100",
            ],
            ["link 2, transfers, line 4 to 7: the 4 rows there are not what was booked"],
            id="swapped-rows",
        ),
        pytest.param(
            ["DELETE FROM transfers WHERE line >= 8"],
            ["link 3, transfers, line 8 to 9: the 0 rows there are not what was booked"],
            id="cut-tail-of-rows",
        ),
        pytest.param(
            ["DELETE FROM links WHERE link = 2"],
            ["link 2 is missing, the next is 3"],
            id="deleted-link",
        ),
        pytest.param(
            ["UPDATE links SET epoch = 7 WHERE link = 1"],
            ["link 1: its hash does not follow from it and the link before"],
            id="flipped-link",
        ),
    ],
)
def test_what_was_tampered_with_is_named_by_its_place(
    topics: Topics, statements: list[str], findings: list[str]
) -> None:
    heads = book_three_flushes(topics)
    assert found(topics.url, heads) == []
    tamper(topics.url, *statements)
    assert set(findings) <= set(found(topics.url, heads))


CUT_TAIL = [
    "DELETE FROM transfers WHERE line >= 8",
    "DELETE FROM decisions WHERE decision_offset >= 4",
    "DELETE FROM outcomes WHERE outcome_offset >= 2",
    "DELETE FROM links WHERE link > 2",
    "UPDATE cursors SET next_offset = 4, next_line = 8 WHERE topic = 'd'",
    "UPDATE cursors SET next_offset = 2 WHERE topic = 'o'",
]


def test_a_tail_that_is_cut_off_with_its_links_contradicts_a_head(topics: Topics) -> None:
    heads = book_three_flushes(topics)
    tamper(topics.url, *CUT_TAIL)
    assert found(topics.url) == []
    assert found(topics.url, heads) == [
        "the head of link 3 was published, the last link is 2: cut off"
    ]
    # What the sink books from there on is a chain, but another one.
    topics.writer.close()
    again = Topics(topics.url)
    again.offsets = [4, 2]
    again.book(decision("r5"), usage("r5", 1_000))
    assert found(topics.url) == []
    assert found(topics.url, [*heads, sign(KEY, again.unit.link)]) == [
        "link 3 is not the one that was published: links were rewritten after link 1"
    ]
    again.writer.close()


def rewrite_chain(url: str) -> None:
    """Hash every link anew, over the rows as they are now."""
    with psycopg.connect(connection_string(url)) as connection, connection.cursor() as cursor:
        cursor.execute("SET session_replication_role = replica")
        links = [
            Link._make(row)
            for row in cursor.execute("SELECT * FROM links ORDER BY link").fetchall()
        ]
        for before, link in itertools.pairwise(links):
            digests: dict[str, Any] = {}
            for journal in JOURNALS:
                low, high = getattr(before, journal.end), getattr(link, journal.end)
                digests[journal.digest] = _digest(cursor, journal, low, high)
            before = links[before.link]
            links[link.link] = link = seal(before.sha256, link._replace(**digests))
            cursor.execute(
                "UPDATE links SET decisions_sha256 = %s, outcomes_sha256 = %s, "
                "transfers_sha256 = %s, sha256 = %s WHERE link = %s",
                [*link[7:], link.link],
            )


def _digest(cursor: psycopg.Cursor[Any], journal: Any, low: int, high: int) -> bytes:
    content = hashlib.sha256()
    names = ", ".join(journal.target.columns)
    where = f"{journal.place} >= {low} AND {journal.place} < {high}"
    query = f"SELECT {names} FROM {journal.table.name} WHERE {where} ORDER BY {journal.place}"
    if cursor.execute(f"SELECT count(*) FROM ({query}) AS r".encode()).fetchone() == (0,):
        return content.digest()
    with cursor.copy(f"COPY ({query}) TO STDOUT (FORMAT BINARY)".encode()) as copy:
        for block in copy:
            content.update(block)
    return content.digest()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE transfers SET amount_nanousd = 99 WHERE line = 5",
        "UPDATE transfers SET amount_nanousd = 99 WHERE line = 9",
        "UPDATE links SET booked_at = booked_at - interval '1 day' WHERE link = 2",
    ],
)
def test_a_chain_that_was_hashed_anew_contradicts_the_heads(topics: Topics, statement: str) -> None:
    heads = book_three_flushes(topics)
    tamper(topics.url, "UPDATE transfers SET booked_at = DEFAULT WHERE false", statement)
    rewrite_chain(topics.url)
    assert not [finding for finding in found(topics.url) if "hash" in finding]
    assert ("link 3 is not the one that was published: links were rewritten after link 1") in found(
        topics.url, heads
    )
    # The sink goes on from the rewritten chain, and signs what it writes: no help.
    topics.writer.close()
    deceived = Topics(topics.url)
    deceived.offsets = [5, 3]
    deceived.book(decision("r6"))
    assert ("link 3 is not the one that was published: links were rewritten after link 1") in found(
        topics.url, [*heads, sign(KEY, deceived.unit.link)]
    )
    deceived.writer.close()


def test_heads_that_no_sink_signed_are_named(topics: Topics) -> None:
    first, last = book_three_flushes(topics)
    forged = decode(LedgerHead, encode(last))
    forged.sha256 = first.sha256
    other = sign(OTHER_KEY, topics.unit.link)
    assert is_genuine(KEY, last) and not is_genuine(KEY, forged) and is_genuine(OTHER_KEY, other)
    assert found(topics.url, [first, forged, other]) == [
        "the head of link 3 is not signed with this key",
        f"the head of link 3 is not signed with this key: it names key {other.key_id}",
    ]


def test_the_chain_holds_through_all_that_a_writer_goes_through(topics: Topics) -> None:
    """Sweeps, copies from before, refusals, another writer, commits in doubt."""
    topics.book(decision("r1"), decision("r2"), usage("r2", 7))
    topics.book(b"poison", at_ms=T0 + TTL_MS + 1)
    topics.unit.cases.clear()
    topics.book(decision("r1"), decision("r3"), usage("r1", 5), at_ms=T0 + TTL_MS + 2)
    heads = [sign(KEY, topics.unit.link)]
    fourth = Topics(topics.url, partition=4, partitions=8)
    fourth.book(decision("r2"), decision("r9"), usage("r9", 1))
    newer = Topics(topics.url)
    newer.offsets = topics.offsets
    newer.book(decision("r4"))
    cutter = CommitCutter(topics.url, forward=True)
    try:
        cut = Topics(cutter.url)
        cut.offsets = newer.offsets
        batch = cut.batch(decision("r5"), usage("r5", 100))
        with pytest.raises(psycopg.OperationalError):
            cut.writer.flush(cut.unit, batch)
        cut.writer.flush(cut.unit, batch)
        heads.append(sign(KEY, cut.unit.link))
        cut.writer.close()
    finally:
        cutter.close()
    assert cut.writer.counts.in_doubt == 1
    assert found(topics.url, heads) == []
    assert found(topics.url, [sign(KEY, fourth.unit.link)], partition=4) == []
    kinds = topics.rows("SELECT kind FROM transfers WHERE request_id = 'r1' ORDER BY line")
    assert [kind for (kind,) in kinds] == ["reserve", "expire", "adjust", "settle", "release"]
    fourth.writer.close()
    newer.writer.close()


def test_a_ledger_from_before_the_chain_begins_it_where_it_stands(topics: Topics) -> None:
    topics.book(decision("r1"), usage("r1", 5))
    tamper(topics.url, "TRUNCATE links")
    topics.writer.close()
    again = Topics(topics.url)
    again.offsets = [1, 1]
    assert (again.unit.link.link, again.unit.link.next_line) == (0, 3)
    again.book(decision("r2"), usage("r2", 5))
    assert found(topics.url, [sign(KEY, again.unit.link)]) == []
    again.writer.close()


def test_rows_are_read_back_as_they_were_sent(topics: Topics) -> None:
    """Digests are taken over what COPY sends, and compared with what it returns."""
    odd = decision("r1", reward=-0.0, propensity=5e-324, segment="é\\\t\n", policy="\N{SNOWMAN}")
    rejected = decision("r2", arm=None, rejected="budget", price=None, reserved_nanousd=0)
    topics.book(odd, rejected, usage("r1", 1, error="\\N", reward=1e-300))
    far = decision("r3", root="é", arm="ü@x")
    topics.book(far, usage("r3", 2_000), key="é".encode())
    assert found(topics.url) == []
    assert topics.rows(
        "SELECT line, kind, debit_account, amount_nanousd, root, arm, source_topic, source_offset"
        " FROM transfers WHERE request_id = 'r3' ORDER BY line"
    ) == [
        (3, "reserve", "reserved:é/search/key", 1_000, "é", "ü@x", "d", 2),
        (4, "settle", "spent:é/search/key", 1_000, "é", "ü@x", "o", 1),
        (5, "overrun", "overrun:é/search/key", 1_000, "é", "ü@x", "o", 1),
    ]
    assert len(rows.DECISIONS.columns) == 26


def test_the_key_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "home" / "heads.key"
    with pytest.raises(LedgerKeyError, match="TOLLWAY_HEADS_KEY"):
        load_key(path)
    key = load_key(path, create=True)
    assert load_key(path, create=True) == load_key(path) == key
    assert path.stat().st_mode & 0o777 == 0o600
    assert [file.name for file in path.parent.iterdir()] == ["heads.key"]
    for text, reason in (("0f" * 31, "32 bytes"), ("no key", "hexadecimal")):
        path.write_text(text)
        with pytest.raises(LedgerKeyError, match=reason):
            load_key(path)


def test_an_unreadable_record_is_sealed_with_its_batch(topics: Topics) -> None:
    topics.writer.flush(topics.unit, Batch(outcomes=[Raw(0, T0, b"{", b"acme")]))
    assert topics.unit.link.next_outcome == 1
    assert found(topics.url, [sign(KEY, topics.unit.link)]) == []


def test_the_sinks_role_can_book_and_change_nothing(topics: Topics) -> None:
    role = f"sink_{uuid.uuid4().hex}"

    def connect(url: str) -> psycopg.Connection[Any]:
        connection = connect_sink(url)
        connection.execute(f"SET SESSION AUTHORIZATION {role}".encode())
        return connection

    with psycopg.connect(connection_string(topics.url), autocommit=True) as owner:
        owner.execute(f"CREATE ROLE {role} LOGIN".encode())
        try:
            grant_sink(topics.url, role)
            grant_sink(topics.url, role)
            writer = LedgerWriter(topics.url, decisions="d", outcomes="o", connect=connect)
            unit = writer.claim(0, partitions=1)
            writer.flush(unit, topics.batch(decision("r1"), usage("r1", 5), b"poison"))
            assert found(topics.url, [sign(KEY, unit.link)]) == []
            for attack in (
                "UPDATE transfers SET amount_nanousd = 0",
                "DELETE FROM links",
                "TRUNCATE transfers",
                "ALTER TABLE transfers DISABLE TRIGGER ALL",
                "DROP TRIGGER links_rows_stay ON links",
                "DROP TABLE links CASCADE",
                "SET session_replication_role = replica",
                "CREATE TABLE mine (x int)",
            ):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    writer.connection.execute(attack.encode())
            writer.close()
        finally:
            owner.execute(f"DROP OWNED BY {role}".encode())
            owner.execute(f"DROP ROLE {role}".encode())
