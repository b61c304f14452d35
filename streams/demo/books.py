"""What the demo asks the ledger's database."""

from __future__ import annotations

from collections.abc import Sequence

import psycopg

from streams.demo.laws import Booked
from streams.demo.measures import LedgerRow
from streams.ledger.database import connection_string


def read_totals(database_url: str) -> LedgerRow:
    """Return how much is booked now."""
    with psycopg.connect(connection_string(database_url)) as connection:
        row = connection.execute(
            "SELECT coalesce(sum(amount_nanousd) FILTER (WHERE kind IN ('settle', 'overrun')), 0),"
            " count(*), (SELECT count(*) FROM decisions) FROM transfers"
        ).fetchone()
    assert row is not None
    return LedgerRow(spent_nanousd=int(row[0]), transfers=row[1], decisions=row[2])


def read_cursors(database_url: str) -> dict[tuple[str, int], int]:
    """Return how far the sink has booked each partition of each topic."""
    with psycopg.connect(connection_string(database_url)) as connection:
        rows = connection.execute("SELECT topic, partition, next_offset FROM cursors").fetchall()
    return {(topic, partition): offset for topic, partition, offset in rows}


def read_booked(database_url: str) -> Sequence[Booked]:
    """Return the transfers of every request."""
    statement = (
        "SELECT d.request_id, d.budget, d.decided_ms, jsonb_object_agg(t.kind, t.amount_nanousd)"
        " FROM transfers t JOIN decisions d USING (decision_id)"
        " GROUP BY d.decision_id, d.request_id, d.budget, d.decided_ms"
    )
    with psycopg.connect(connection_string(database_url)) as connection:
        rows = connection.execute(statement).fetchall()
    return [
        Booked(request_id=request, budget=budget, decided_ms=decided_ms, amounts=amounts)
        for request, budget, decided_ms, amounts in rows
    ]
