"""Proves the chain of one partition: the journals against the links, and those against the heads.

What each tampering contradicts: a row that was changed, added, removed or moved, its link; a cut
tail, the cursors, or where those were set back too, a head; a chain that was hashed anew, every
head that was published after the place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import psycopg
from psycopg import sql
from sqlalchemy import Table

from streams.ledger import rows, schema
from streams.ledger.chain import COPY_HEADER, COPY_TRAILER, NOTHING, ORIGIN, Link, seal
from streams.ledger.heads import is_genuine, key_id
from streams.ledger.rows import Target
from streams.records import LedgerHead

Find = Callable[[str], None]

_LINKS = """
SELECT partition, link, epoch, next_decision, next_outcome, next_line, booked_at,
    decisions_sha256, outcomes_sha256, transfers_sha256, sha256
FROM links WHERE partition = %s ORDER BY link
"""
_MISDATED = """
SELECT t.line, l.link FROM transfers t, LATERAL (
    SELECT link, booked_at FROM links
    WHERE partition = t.partition AND next_line > t.line ORDER BY link LIMIT 1
) AS l
WHERE t.partition = %s AND t.booked_at <> l.booked_at AND l.link > 0 ORDER BY t.line LIMIT 10
"""


class Journal(NamedTuple):
    """A table that is chained: the column of a row's place, and a link's fields for end and digest.

    Rows before a link's end, and not before that of the link before, are the link's.
    """

    table: Table
    target: Target
    place: str
    end: str
    digest: str


JOURNALS = (
    Journal(schema.transfers, rows.TRANSFERS, "line", "next_line", "transfers_sha256"),
    Journal(
        schema.decisions, rows.DECISIONS, "decision_offset", "next_decision", "decisions_sha256"
    ),
    Journal(schema.outcomes, rows.OUTCOMES, "outcome_offset", "next_outcome", "outcomes_sha256"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainState:
    """What was checked: the number of links, of heads, and the last link that a head covers."""

    links: int
    heads: int
    covered: int


def check_chain(
    database: psycopg.Cursor[Any],
    partition: int,
    heads: Sequence[LedgerHead],
    *,
    key: bytes | None,
    find: Find,
) -> ChainState:
    """Check a partition's rows against its links, and those against the heads.

    ``heads`` must have been read before the snapshot that ``database`` looks at was taken.
    Without a ``key`` the heads are taken for genuine.
    """
    database.execute(_LINKS, [partition])
    links = [Link._make(row) for row in database.fetchall()]
    _check_links(links, find)
    for journal in JOURNALS if links else ():
        _check_rows(database, partition, journal, links, find)
    database.execute(_MISDATED, [partition])
    for line, link in database.fetchall():
        find(f"link {link}, line {line} of transfers: not booked when the link was")
    covered = _check_heads(links, heads, key, find)
    return ChainState(links=len(links), heads=len(heads), covered=covered)


def _check_links(links: Sequence[Link], find: Find) -> None:
    before, wanted = ORIGIN, 0
    for link in links:
        if link.link != wanted:
            find(f"link {wanted} is missing, the next is {link.link}")
        elif seal(before, link).sha256 != link.sha256:
            find(f"link {link.link}: its hash does not follow from it and the link before")
        before, wanted = link.sha256, link.link + 1


def _check_rows(
    database: psycopg.Cursor[Any],
    partition: int,
    journal: Journal,
    links: Sequence[Link],
    find: Find,
) -> None:
    """Compare one journal's rows with the digests of the links."""
    name, found = journal.table.name, _rows(database, partition, journal)
    start: int = getattr(links[0], journal.end)
    row = next(found, None)
    while row is not None and row[0] < start:
        # Booked before the ledger had a chain.
        row = next(found, None)
    for link in links[1:]:
        end: int = getattr(link, journal.end)
        places: list[int] = []
        content = hashlib.sha256()
        while row is not None and row[0] < end:
            content.update(row[1] if places else COPY_HEADER + row[1])
            places.append(row[0])
            row = next(found, None)
        if places:
            content.update(COPY_TRAILER)
        digest = content.digest() if places else NOTHING
        if digest != getattr(link, journal.digest):
            spread = f"{start} to {end - 1}" if end > start + 1 else str(start)
            find(
                f"link {link.link}, {name}, {journal.place} {spread}: "
                f"the {len(places)} rows there are not what was booked"
            )
        start = end
    while row is not None:
        find(f"{name}, {journal.place} {row[0]}: a row after the end of the chain")
        row = next(found, None)


def _rows(
    database: psycopg.Cursor[Any], partition: int, journal: Journal
) -> Iterator[tuple[int, bytes]]:
    """Yield each row's place and its bytes as binary COPY has them."""
    columns = sql.SQL(", ").join(map(sql.Identifier, journal.target.columns))
    statement = sql.SQL("COPY (SELECT {} FROM {} WHERE partition = {} ORDER BY {}) TO STDOUT ({})")
    query = statement.format(
        columns,
        sql.Identifier(journal.table.name),
        partition,
        sql.Identifier(journal.place),
        sql.SQL("FORMAT BINARY"),
    )
    key = journal.target.columns.index(journal.place)
    count = len(journal.target.columns).to_bytes(2, "big")
    with database.copy(query) as copy:
        for row in copy.rows():
            fields = [
                b"\xff\xff\xff\xff" if field is None else len(field).to_bytes(4, "big") + field
                for field in row
            ]
            yield int.from_bytes(row[key], "big"), b"".join([count, *fields])


def _check_heads(
    links: Sequence[Link], heads: Sequence[LedgerHead], key: bytes | None, find: Find
) -> int:
    """Compare the links with the heads; return the last link that a head agrees with."""
    by_number = {link.link: link for link in links}
    agreed, refuted = 0, None
    for head in sorted(heads, key=lambda head: head.link):
        if key is not None and not is_genuine(key, head):
            other = "" if head.key_id == key_id(key) else f": it names key {head.key_id}"
            find(f"the head of link {head.link} is not signed with this key{other}")
            continue
        link = by_number.get(head.link)
        if link is None:
            last = links[-1].link if links else "none"
            find(f"the head of link {head.link} was published, the last link is {last}: cut off")
        elif link.sha256.hex() == head.sha256:
            agreed = head.link
        elif refuted is None:
            refuted = head.link
            find(
                f"link {head.link} is not the one that was published: "
                f"links were rewritten after link {agreed}"
            )
    return agreed
