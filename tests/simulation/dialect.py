"""The product's SQL as SQLite reads it, rows of binary COPY, and SQLite's refusals as Postgres'.

The statements are the product's own texts: what they say is done, not what they are meant to say.
What is not rewritten here and SQLite does not know either ends the simulation.
"""

from __future__ import annotations

import json
import re
import sqlite3
import struct
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psycopg
from psycopg.pq import DiagnosticField
from sqlalchemy.dialects import sqlite
from sqlalchemy.schema import CreateIndex, CreateTable

from streams.ledger import rows, schema

TABLES = (
    schema.cursors, schema.decisions, schema.outcomes, schema.transfers, schema.links,
    schema.dead_letters, schema.conflicts,
)  # fmt: skip
TARGETS = {
    target.statement.as_string(None): target
    for target in (
        rows.DECISIONS, rows.OUTCOMES, rows.TRANSFERS, rows.DEAD_LETTERS, rows.CONFLICTS
    )
}  # fmt: skip
_FENCE = """
CREATE TRIGGER fence BEFORE INSERT ON links
WHEN EXISTS (SELECT 1 FROM cursors WHERE partition = NEW.partition AND epoch <> NEW.epoch)
BEGIN SELECT RAISE(ABORT, 'a writer booked in an epoch that is not the partition''s'); END
"""
"""A law that cannot be told from the rows afterwards."""
_REWRITTEN = (
    (r"::bigint", ""),
    (r" FOR UPDATE\b", ""),
    (
        r"= ANY\(string_to_array\(%s, ','\)\)",
        """IN (SELECT value FROM json_each('["' || replace(%s, ',', '","') || '"]'))""",
    ),
    (r"= ANY\(%s\)", "IN (SELECT value FROM json_each(%s))"),
    (r"SELECT FROM", "SELECT 1 FROM"),
    (r"OFFSET %s LIMIT 1", "LIMIT 1 OFFSET %s"),
    # The one row that a LATERAL join would find.
    (
        r"FROM transfers t, LATERAL \(\s*SELECT link, booked_at (FROM links.*?)\s*\) AS l",
        r"FROM transfers t JOIN links l ON l.rowid = (SELECT rowid \1)",
    ),
)
_TARGET = re.compile(r"\(VALUES (.*?)\)\s+AS target \((.*?)\)", re.DOTALL)
_TIMES = {"booked_at", "now()"}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SIGNATURE, _TRAILER = b"PGCOPY\n\xff\r\n\0" + bytes(8), b"\xff\xff"


@lru_cache(maxsize=256)
def translate(text: str) -> str:
    """Return the statement for SQLite."""
    for old, new in _REWRITTEN:
        text = re.sub(old, new, text, flags=re.DOTALL)

    def with_names(match: re.Match[str]) -> str:
        names = ", ".join(
            f"column{n} AS {name.strip()}" for n, name in enumerate(match[2].split(","), 1)
        )
        return f"(SELECT {names} FROM (VALUES {match[1]})) AS target"

    return _TARGET.sub(with_names, text).replace("%s", "?")


@lru_cache(maxsize=256)
def _partition_parameter(text: str) -> int:
    """Return which parameter names the partition whose rows a statement is about."""
    insert = re.match(r"\s*INSERT INTO \w+ \((.*?)\)\s*VALUES", text, re.DOTALL)
    if insert is not None:
        return [name.strip() for name in insert[1].split(",")].index("partition")
    found = re.search(r"\bpartition = %s", text)
    assert found is not None, f"no partition is named: {text}"
    return text[: found.start()].count("%s")


def partition_of(text: str, parameters: Sequence[Any]) -> int:
    """Return the partition whose rows a statement reads or writes; every one names it."""
    partition: int = parameters[_partition_parameter(text)]
    return partition


def is_write(text: str) -> bool:
    """Return whether it needs the row locks of its partition's cursors."""
    return not text.lstrip().startswith("SELECT") or " FOR UPDATE" in text


def to_sqlite(parameters: Sequence[Any]) -> list[Any]:
    """Return parameters as SQLite takes them: times are microseconds, arrays JSON."""
    return [_to_sqlite(value) for value in parameters]


def _to_sqlite(value: Any) -> Any:
    if isinstance(value, datetime):
        return (value - _EPOCH) // timedelta(microseconds=1)
    return json.dumps(value) if isinstance(value, list) else value


def fetch(cursor: sqlite3.Cursor) -> list[tuple[Any, ...]]:
    """Return all rows, times as such."""
    if cursor.description is None:
        return []
    times = [n for n, (name, *_) in enumerate(cursor.description) if name in _TIMES]
    if not times:
        return cursor.fetchall()
    return [
        tuple(_EPOCH + timedelta(microseconds=v) if n in times else v for n, v in enumerate(row))
        for row in cursor
    ]


def copy_in(statement: str, content: bytes) -> tuple[str, list[tuple[Any, ...]]]:
    """Return the INSERT and the rows that a binary COPY means."""
    target = TARGETS[statement]
    assert content.startswith(_SIGNATURE) and content.endswith(_TRAILER)
    at, found = len(_SIGNATURE), []
    while at < len(content) - len(_TRAILER):
        (count,) = struct.unpack_from(">h", content, at)
        assert count == len(target.types)
        at += 2
        row: list[Any] = []
        for type_ in target.types:
            (size,) = struct.unpack_from(">i", content, at)
            at += 4
            row.append(None if size < 0 else _load(type_, content[at : at + size]))
            at += max(size, 0)
        found.append(tuple(row))
    table = re.match(r'COPY "(\w+)"', statement)
    assert table is not None
    places = ", ".join("?" * len(target.columns))
    return f"INSERT INTO {table[1]} ({', '.join(target.columns)}) VALUES ({places})", found


def _load(type_: str, field: bytes) -> Any:
    if type_ == "float8":
        return struct.unpack(">d", field)[0]
    if type_ in ("int4", "int8"):
        assert len(field) == int(type_[-1])
        return int.from_bytes(field, "big", signed=True)
    return {"text": bytes.decode, "bytea": bytes, "bool": lambda f: f == b"\1"}[type_](field)


def dump(type_: str, value: Any) -> bytes | None:
    """Return a field as binary COPY has it."""
    if value is None:
        return None
    if type_ == "float8":
        return struct.pack(">d", value)
    if type_ in ("int4", "int8"):
        return int(value).to_bytes(int(type_[-1]), "big", signed=True)
    if type_ == "bool":
        return bytes([value])
    return value.encode() if type_ == "text" else bytes(value)


def as_postgres(error: sqlite3.IntegrityError) -> psycopg.Error:
    """Return the error that Postgres would raise."""
    kind, found, places = str(error).partition(" constraint failed: ")
    assert found, kind
    if kind == "CHECK":
        return _violation(psycopg.errors.CheckViolation, places)
    columns = {place.split(".")[1] for place in places.split(", ")}
    (table,) = [t for t in TABLES if t.name == places.split(".")[0]]
    if kind == "NOT NULL":
        return _violation(psycopg.errors.NotNullViolation, places)
    (name,) = [
        constraint.name
        for constraint in table.constraints
        if {column.name for column in getattr(constraint, "columns", ())} == columns
        and type(constraint).__name__ != "CheckConstraint"
    ]
    return _violation(psycopg.errors.UniqueViolation, str(name))


def _violation(kind: type[psycopg.Error], constraint: str) -> psycopg.Error:
    info = {DiagnosticField.CONSTRAINT_NAME: constraint.encode()}
    return kind(f"violates {constraint}", info=info)  # type: ignore[arg-type]


@lru_cache(maxsize=1)
def empty_database() -> bytes:
    """Return a database file with the ledger's tables, their keys and their checks."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "empty"
        database = sqlite3.connect(path, isolation_level=None)
        database.create_function("now", 0, int)
        database.execute("PRAGMA journal_mode = WAL")
        for table in TABLES:
            statements = [CreateTable(table), *map(CreateIndex, table.indexes)]
            for statement in statements:
                text = str(statement.compile(dialect=sqlite.dialect()))  # type: ignore[no-untyped-call]
                database.execute(text.replace("DEFAULT now()", "DEFAULT (now())"))
        database.execute(_FENCE)
        database.close()
        return path.read_bytes()
