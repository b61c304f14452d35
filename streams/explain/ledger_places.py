"""Where the ledger knows the records of one request to lie, and what it has booked for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import psycopg
from psycopg.rows import dict_row

from streams import topics
from streams.explain.trace import Conflict, Transfer
from streams.ledger.database import connection_string, reason_of
from streams.records import decision_id

_COLUMNS = """
SELECT partition, decision_offset, decision_id, request_id, budget, segment, policy, arm, rejected,
       reserved_nanousd, price_version, price_input, price_output, price_cached, input_tokens,
       max_output_tokens, decided_ms, expires_ms, expected_reward, expected_nanousd, propensity,
       explored
FROM decisions
"""
_BY_ROOT = "WHERE decision_id = %s"
_BY_REQUEST = "WHERE request_id = %s ORDER BY partition, decision_offset"
_TRANSFERS = """
SELECT kind, debit_account, credit_account, amount_nanousd, event_ms, line
FROM transfers WHERE decision_id = %s ORDER BY line
"""
_OUTCOMES = "SELECT outcome_offset FROM outcomes WHERE partition = %s AND decision_id = %s"
_CONFLICTS = """
SELECT topic, partition, record_offset, part, reason
FROM conflicts WHERE decision_id = %s ORDER BY topic, partition, record_offset, part
"""
_CURSORS = "SELECT partition, next_offset FROM cursors WHERE topic = %s"
_DECIDED = """
SELECT decision_id, partition, decision_offset, decided_ms FROM decisions
WHERE decision_id = ANY(%s)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """What the ledger answers; empty, with the ``problem``, if it could not be asked."""

    rows: Sequence[Mapping[str, Any]] = ()
    transfers: Sequence[Transfer] = ()
    conflicts: Sequence[Conflict] = ()
    outcome_offsets: Sequence[int] = ()
    outcome_cursors: Mapping[int, int] = field(default_factory=dict)
    problem: str = ""

    @property
    def row(self) -> Mapping[str, Any] | None:
        """The decision's row."""
        return self.rows[0] if self.rows else None

    def next_outcome(self, partition: int) -> int:
        """Return the offset from which on the ledger has not read outcomes, if it knows some."""
        return self.outcome_cursors.get(partition, 0) if self.rows else 0


@dataclass(frozen=True, slots=True)
class DecidedPlace:
    """Where the effective decision of a request lies."""

    partition: int
    offset: int
    decided_ms: int


def find_decided(
    database_url: str | None, decision_ids: Sequence[str]
) -> tuple[Mapping[str, DecidedPlace], Mapping[int, int]]:
    """Ask the ledger which of these are decided, and up to where it has read each partition.

    Never fails: what the ledger cannot tell, it has not read.
    """
    if database_url is None:
        return {}, {}
    try:
        with psycopg.connect(connection_string(database_url), connect_timeout=5) as connection:
            # The cursors first: what is booked meanwhile may be read twice, but is not missed.
            cursors = connection.execute(_CURSORS, [topics.DECISIONS]).fetchall()
            rows = connection.execute(_DECIDED, [list(decision_ids)]).fetchall()
    except psycopg.Error:
        return {}, {}
    return {decision_id: DecidedPlace(*place) for decision_id, *place in rows}, dict(cursors)


def find_places(database_url: str | None, request_id: str, root: str | None) -> Places:
    """Ask the ledger for a request; never fails, because the topics alone suffice."""
    if database_url is None:
        return Places(problem="no database is set")
    try:
        with psycopg.connect(
            connection_string(database_url), connect_timeout=5, row_factory=dict_row
        ) as connection:
            return _ask(connection, request_id, root)
    except psycopg.errors.UndefinedTable:
        return Places(problem="it has no tables; run `tollway migrate`")
    except psycopg.Error as exc:
        return Places(problem=reason_of(exc))


def _ask(
    connection: psycopg.Connection[dict[str, Any]], request_id: str, root: str | None
) -> Places:
    if root is None:
        rows = connection.execute(_COLUMNS + _BY_REQUEST, [request_id]).fetchall()
    else:
        rows = connection.execute(_COLUMNS + _BY_ROOT, [decision_id(root, request_id)]).fetchall()
    cursors = connection.execute(_CURSORS, [topics.OUTCOMES]).fetchall()
    places = Places(
        rows=rows, outcome_cursors={row["partition"]: row["next_offset"] for row in cursors}
    )
    if places.row is None:
        return places
    partition, identity = places.row["partition"], places.row["decision_id"]
    transfers = connection.execute(_TRANSFERS, [identity]).fetchall()
    conflicts = connection.execute(_CONFLICTS, [identity]).fetchall()
    outcomes = connection.execute(_OUTCOMES, [partition, identity]).fetchall()
    return replace(
        places,
        transfers=[Transfer(**row) for row in transfers],
        conflicts=[
            Conflict(
                topic=row["topic"],
                partition=row["partition"],
                offset=row["record_offset"],
                part=row["part"],
                reason=row["reason"],
            )
            for row in conflicts
        ],
        outcome_offsets=[row["outcome_offset"] for row in outcomes],
    )
