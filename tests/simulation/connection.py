"""A connection to the simulated Postgres, as much of psycopg's as the sink uses, with faults."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import psycopg
from psycopg.adapt import Transformer
from psycopg.copy import LibpqWriter, Writer
from psycopg.sql import Composed

from tests.simulation.blocking import wait_for
from tests.simulation.database import Postgres, Row, Session
from tests.simulation.process import Process

DEATH_S = 8.0
"""How long a server may take to notice that a client is gone, and messages may take to arrive."""


class Connection:
    """One connection of a process; ``disturb`` may end the process, or stop it, at a statement."""

    def __init__(self, server: Postgres, process: Process, disturb: Callable[[], None]) -> None:
        self.closed = False
        self.adapters = psycopg.adapters
        self.pgconn = _CopyBuffer()
        self._server = server
        self._process = process
        self._disturb = disturb
        self._session: Session | None = None
        self.ask("CONNECT")

    def ask(self, text: str, parameters: Sequence[Any] = (), content: bytes | None = None) -> Any:
        """Do one statement, and wait for its rows."""
        return wait_for(partial(self._ask, text, parameters, content))

    def cursor(self) -> Cursor:
        """Return a cursor."""
        return Cursor(self)

    def execute(self, text: str, parameters: Sequence[Any]) -> Cursor:
        """Do one statement."""
        return self.cursor().execute(text, parameters)

    def close(self) -> None:
        """Hang up; the server notices at some time."""
        self.closed = True
        self._forsake()

    @contextmanager
    def transaction(self) -> Iterator[object]:
        """Begin, and commit or roll back, as psycopg does."""
        attempt = object()
        self.ask("BEGIN")
        try:
            yield attempt
        except BaseException as error:
            if not self.closed:
                with suppress(psycopg.Error):
                    self.ask("ROLLBACK")
            if isinstance(error, psycopg.Rollback) and error.transaction is attempt:
                return
            raise
        if not self.closed:
            self.ask("COMMIT")

    def wait(self, steps: Iterator[Any]) -> Any:
        """Do what only fills a buffer."""
        try:
            next(steps)
        except StopIteration as end:
            return end.value
        raise AssertionError("a buffer is never full")

    async def _ask(self, text: str, parameters: Sequence[Any], content: bytes | None) -> list[Row]:
        process, chance = self._process, self._process.chance
        self._disturb()
        await process.gate()
        rate = process.rates.database / (1 if text == "COMMIT" else 8)
        fault = chance.choice(["lost", "late", "unanswered"]) if chance.random() < rate else ""
        if text == "CONNECT":
            await process.hop()
            if not self._server.up or fault:
                self._break("no connection")
            self._session = Session(self._server)
            return []
        session = self._session
        if self.closed or session is None:
            self._break("the connection is closed")
        assert session is not None
        if fault == "lost":
            self._break("the connection was lost before the statement")
        loop = asyncio.get_running_loop()
        arrives_s = chance.uniform(0.0, DEATH_S) if fault == "late" else process.delay_s()
        # What was sent arrives, whatever becomes of the process that has sent it.
        work = loop.create_task(_arrive(session, arrives_s, text, parameters, content))
        work.add_done_callback(lambda t: t.cancelled() or t.exception())
        if fault == "late":
            await process.hop()
            self._break("the connection was lost; the statement is still on its way")
        try:
            await asyncio.wait([work])
            await process.hop()
        except asyncio.CancelledError:
            self._forsake()
            raise
        if fault or not session.alive:
            self._break("the connection was lost before the answer")
        return work.result()

    def _break(self, why: str) -> None:
        self.close()
        raise psycopg.OperationalError(why)

    def _forsake(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            delay_s = self._process.chance.choice([0.0, self._process.chance.uniform(0, DEATH_S)])
            self._server.loop.call_later(delay_s, session.end)


async def _arrive(
    session: Session, after_s: float, text: str, parameters: Sequence[Any], content: bytes | None
) -> list[Row]:
    await asyncio.sleep(after_s)
    return await session.do(text, parameters, content)


class Cursor:
    """A cursor whose rows are all there."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.adapters = connection.adapters
        self.pgresult = None
        self._rows: Iterator[Row] = iter(())

    def __enter__(self) -> Cursor:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def __iter__(self) -> Iterator[Row]:
        return self._rows

    def execute(self, text: str, parameters: Sequence[Any] = ()) -> Cursor:
        """Do one statement."""
        self._rows = iter(self.connection.ask(text, list(parameters)))
        return self

    def executemany(self, text: str, parameters: Sequence[Sequence[Any]]) -> None:
        """Do one statement several times."""
        for each in parameters:
            self.execute(text, each)

    def fetchone(self) -> Row | None:
        """Return the next row."""
        return next(self._rows, None)

    @contextmanager
    def copy(self, statement: Composed, *, writer: LibpqWriter) -> Iterator[psycopg.Copy]:
        """Take rows with psycopg's own COPY and the product's own writer."""
        self._tx = Transformer(None)
        sender = _Sender(self.connection, statement.as_string(None), writer)
        with psycopg.Copy(self, binary=True, writer=sender) as copy:  # type: ignore[arg-type]
            yield copy


class _CopyBuffer:
    """What psycopg puts the blocks of a COPY into."""

    _encoding = "utf-8"

    def __init__(self) -> None:
        self.content = bytearray()

    def put_copy_data(self, data: bytes) -> int:
        self.content += data
        return 1

    def flush(self) -> int:
        return 0


class _Sender(Writer):
    """Hands blocks to the product's writer, and what that lets through to the server at the end."""

    def __init__(self, connection: Connection, statement: str, inner: LibpqWriter) -> None:
        self._connection = connection
        self._statement = statement
        self._inner = inner
        connection.pgconn.content.clear()

    def write(self, data: Any) -> None:
        self._inner.write(data)

    def finish(self, exc: BaseException | None = None) -> None:
        if exc is None:
            content = bytes(self._connection.pgconn.content)
            self._connection.ask(self._statement, (), content)
