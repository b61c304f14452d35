"""What the sink's database role may do: add to the ledger, and nothing that would change it."""

from __future__ import annotations

import psycopg
from psycopg import sql

from streams.ledger import schema
from streams.ledger.database import connection_string


def grant_sink(database_url: str, role: str) -> None:
    """Let an existing role book, as the tables' owner; safe to repeat.

    It may add rows and move the cursors. It owns nothing, so it can neither change rows that are
    booked nor switch the triggers off that refuse it.
    """
    appended = [table for table in schema.metadata.sorted_tables if table is not schema.cursors]
    tables = sql.SQL(", ").join(sql.Identifier(table.name) for table in appended)
    grantee = sql.Identifier(role)
    with psycopg.connect(connection_string(database_url)) as connection:
        for statement in (
            sql.SQL("GRANT SELECT, INSERT ON {} TO {}").format(tables, grantee),
            sql.SQL("GRANT SELECT, INSERT, UPDATE ON cursors TO {}").format(grantee),
            sql.SQL("GRANT SELECT ON alembic_version TO {}").format(grantee),
        ):
            connection.execute(statement)
