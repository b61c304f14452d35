"""Alembic's entry: runs the migrations on the connection or URL that the caller gives.

:mod:`streams.ledger.migrate` passes an open connection. The ``alembic`` program passes a URL by
``-x url=...``; no URL is ever read from a file.
"""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection, create_engine
from sqlalchemy.pool import NullPool

from streams.ledger.schema import metadata


def _run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=metadata,
        compare_type=True,
        compare_server_default=True,
    )
    with context.begin_transaction():
        context.run_migrations()


def _run_by_url() -> None:
    url = context.get_x_argument(as_dictionary=True).get("url")
    if not isinstance(url, str):
        raise SystemExit("give the database: alembic -x url=postgresql+psycopg://... COMMAND")
    with create_engine(url, poolclass=NullPool).connect() as connection:
        _run(connection)


_given = context.config.attributes.get("connection")
if isinstance(_given, Connection):
    _run(_given)
else:
    _run_by_url()
