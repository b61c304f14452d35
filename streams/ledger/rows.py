"""Rows of the ledger's tables, as COPY takes them: the columns, their types, and the values."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

from msgspec import Struct
from psycopg import sql
from sqlalchemy import BigInteger, Boolean, Double, Integer, LargeBinary, Table, Text

from streams.ledger import schema
from streams.ledger.fold import Reported
from streams.ledger.reading import root_of
from streams.records import BadRecordError, Decision, Outcome

Row = tuple[Any, ...]

_TYPES: dict[type, str] = {
    BigInteger: "int8",
    Boolean: "bool",
    Double: "float8",
    Integer: "int4",
    LargeBinary: "bytea",
    Text: "text",
}


class Raw(Struct, frozen=True, gc=False):
    """A record as it lay in its topic."""

    offset: int
    at_ms: int
    value: bytes | None
    key: bytes | None = None


class Target(NamedTuple):
    """Where rows of one table go: the statement of their COPY, its columns and their types."""

    statement: sql.Composed
    columns: list[str]
    types: list[str]


def _target(table: Table, *, without: tuple[str, ...] = ()) -> Target:
    columns = [column for column in table.columns if column.name not in without]
    statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(
        sql.Identifier(table.name), sql.SQL(", ").join(sql.Identifier(c.name) for c in columns)
    )
    types = [_TYPES[type(column.type)] for column in columns]
    return Target(statement, [column.name for column in columns], types)


DECISIONS = _target(schema.decisions)
OUTCOMES = _target(schema.outcomes)
TRANSFERS = _target(schema.transfers, without=("booked_at",))
DEAD_LETTERS = _target(schema.dead_letters)
CONFLICTS = _target(schema.conflicts)


def decision_row(partition: int, offset: int, decision: Decision, mark: bytes) -> Row:
    """Return the row of an effective decision."""
    price = decision.price if decision.arm is not None else None
    return (
        decision.decision_id,
        partition,
        offset,
        decision.request_id,
        decision.budget,
        root_of(decision.budget),
        decision.segment,
        decision.policy,
        decision.arm,
        decision.rejected,
        decision.reserved_nanousd,
        None if price is None else price.version,
        None if price is None else price.input,
        None if price is None else price.output,
        None if price is None else price.cached,
        decision.input_tokens,
        decision.max_output_tokens,
        decision.decided_ms,
        decision.expires_ms,
        decision.reward,
        decision.cost_nanousd,
        decision.propensity,
        decision.explored,
        decision.offsets.outcomes,
        decision.offsets.catalog,
        mark,
    )


def outcome_row(partition: int, outcome: Outcome, facts: Reported) -> Row:
    """Return the row of an outcome."""
    return (
        partition,
        facts.offset,
        facts.request_id,
        facts.decision_id,
        facts.named_decision_id,
        facts.at_ms,
        facts.clock_ms,
        facts.prompt_tokens,
        facts.completion_tokens,
        facts.cached_tokens,
        facts.billed_nanousd,
        facts.reward,
        outcome.latency_ms,
        outcome.error,
    )


def dead_letter_row(topic: str, partition: int, raw: Raw, error: BadRecordError) -> Row:
    """Return the row that says where an unreadable record lies and why it is refused."""
    value = raw.value or b""
    return (
        topic,
        partition,
        raw.offset,
        error.reason,
        error.detail.replace("\0", "\N{REPLACEMENT CHARACTER}")[:500],
        hashlib.sha256(value).hexdigest(),
        len(value),
        raw.at_ms,
    )
