"""Connections of the sink, and which of Postgres' errors mean what."""

from __future__ import annotations

import psycopg
from sqlalchemy import make_url

_OPTIONS = " ".join(
    f"-c {name}={value}"
    for name, value in {
        "statement_timeout": 30_000,
        "lock_timeout": 5_000,
        "idle_in_transaction_session_timeout": 30_000,
        # The sink only looks rows up by key. On tables that grow from nothing the planner's
        # statistics are behind for minutes, and a guess for a scan would read the whole ledger.
        "enable_seqscan": "off",
        "enable_hashjoin": "off",
        "enable_mergejoin": "off",
    }.items()
)


def connection_string(database_url: str) -> str:
    """Return the URL as libpq reads it, whatever SQLAlchemy driver it names."""
    url = make_url(database_url).set(drivername="postgresql")
    return url.render_as_string(hide_password=False)


def connect_sink(database_url: str) -> psycopg.Connection[tuple[object, ...]]:
    """Open a connection on which no step can hang: every wait has a limit."""
    return psycopg.connect(
        connection_string(database_url),
        autocommit=True,
        application_name="tollway sink",
        connect_timeout=5,
        keepalives_idle=2,
        keepalives_interval=1,
        keepalives_count=3,
        tcp_user_timeout=5_000,
        options=_OPTIONS,
        # A plan that is kept would be one for the size that the tables had at the start.
        prepare_threshold=None,
    )


def is_transient(error: Exception) -> bool:
    """Return whether trying again later can help: the server or the way to it is at fault."""
    return isinstance(
        error, psycopg.OperationalError | psycopg.InterfaceError | psycopg.InternalError
    )


def is_refusal(error: Exception) -> bool:
    """Return whether the data are at fault: a value that the database cannot or must not hold."""
    return isinstance(error, psycopg.DataError | psycopg.IntegrityError | UnicodeEncodeError)


def corrupt_constraint(error: Exception) -> str | None:
    """Return the constraint that no record can break, only rows that were not booked by a sink.

    The cursor sees to it that a line, an offset and a request's kind are written once. Only a
    decision may be there before: as the first of several, or because another partition booked it
    when the topics had another count.
    """
    if not isinstance(error, psycopg.errors.UniqueViolation) or is_copy(error):
        return None
    return error.diag.constraint_name


def is_copy(error: psycopg.errors.UniqueViolation) -> bool:
    """Return whether what was refused is a decision that is booked already."""
    return error.diag.constraint_name == "pk_decisions"


def reason_of(error: psycopg.Error) -> str:
    """Return why the database cannot be reached or asked.

    In the words of libpq, which name places and never a password; what a server says of a
    statement may show values, so of that the class and code only.
    """
    said = " ".join(str(error).split())
    is_libpq = isinstance(error, psycopg.OperationalError) and error.sqlstate is None
    return said if said and is_libpq else describe(error)


def describe(error: Exception) -> str:
    """Return the error's class and code, without the values that its message may show."""
    code = error.sqlstate if isinstance(error, psycopg.Error) else None
    return type(error).__name__ if code is None else f"{type(error).__name__} {code}"
