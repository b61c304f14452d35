"""A Postgres: transactions and row locks of the ledger over SQLite, and sessions that may die.

Each partition of the ledger is a database of its own, because everything that the sink does is
about one partition and its transactions on different ones do not wait for each other. What takes
the row locks of a partition's cursors excludes any other writer until the transaction ends; who
does not hold them reads what was last committed.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psycopg

from tests.simulation import dialect
from tests.simulation.broker import START_MS

LOCK_S = 5.0
IDLE_S = 30.0
"""As the sink's connections ask for: how long a lock, and a transaction, may be waited for."""

Row = tuple[Any, ...]


class Shard:
    """The tables of one partition: who writes, who waits for that, and what is committed."""

    def __init__(self, path: Path, server: Postgres) -> None:
        path.write_bytes(dialect.empty_database())
        self.writer, self.reader = (
            sqlite3.connect(path, isolation_level=None, check_same_thread=False) for _ in range(2)
        )
        for database in (self.writer, self.reader):
            database.create_function("now", 0, lambda: server.now_us)
            database.execute("PRAGMA synchronous = OFF")
        self.holder: Session | None = None
        self.waiting: deque[tuple[Session, asyncio.Future[None]]] = deque()

    def give_up(self) -> None:
        """Let the next one write."""
        self.holder = None
        while self.waiting and self.holder is None:
            session, turn = self.waiting.popleft()
            if not turn.done():
                self.holder = session
                turn.set_result(None)

    def close(self) -> None:
        """Close both databases."""
        self.writer.close()
        self.reader.close()


class Postgres:
    """The server: up or down; what was committed stays."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.up = True
        self.now_us = 0
        self.sessions: set[Session] = set()
        self.loop = loop
        self._folder = TemporaryDirectory(prefix="tollway-simulation-")
        self._shards: dict[int, Shard] = {}

    def shard(self, partition: int) -> Shard:
        """Return a partition's tables."""
        found = self._shards.get(partition)
        if found is None:
            path = Path(self._folder.name) / str(partition)
            found = self._shards[partition] = Shard(path, self)
        return found

    def stop(self) -> None:
        """Go away at once: every session ends, and what it had not committed is gone."""
        self.up = False
        for session in list(self.sessions):
            session.end()

    def start(self) -> None:
        """Come back."""
        self.up = True

    def close(self) -> None:
        """Remove everything."""
        self.stop()
        for shard in self._shards.values():
            shard.close()
        self._folder.cleanup()

    def clock_us(self) -> int:
        """Return the server's time."""
        return START_MS * 1_000 + int(self.loop.time() * 1e6)


class Session:
    """One backend: its transaction and its locks."""

    def __init__(self, server: Postgres) -> None:
        self.alive = True
        self._server = server
        self._open = self._failed = False
        self._began_us = 0
        self._held: Shard | None = None
        self._idle: asyncio.TimerHandle | None = None
        server.sessions.add(self)

    async def do(self, text: str, parameters: Sequence[Any], content: bytes | None) -> list[Row]:
        """Do one statement; ``content`` is what a COPY brings.

        Raises
        ------
        psycopg.Error
            As the real one does: the transaction has failed then.
        """
        if not self.alive:
            raise psycopg.OperationalError("the session has ended")
        if self._idle is not None:
            self._idle.cancel()
        try:
            return await self._do(text, parameters, content)
        except psycopg.Error:
            self._failed = self._open
            if not self._open:
                self._finish("ROLLBACK")
            raise
        finally:
            if self._open and self.alive:
                # A client that sleeps within a transaction is thrown out.
                self._idle = self._server.loop.call_later(IDLE_S, self.end)

    def end(self) -> None:
        """End, and undo what is not committed."""
        if not self.alive:
            return
        self.alive = False
        self._server.sessions.discard(self)
        if self._idle is not None:
            self._idle.cancel()
        self._finish("ROLLBACK")

    async def _do(self, text: str, parameters: Sequence[Any], content: bytes | None) -> list[Row]:
        if text == "BEGIN":
            self._open, self._began_us = True, self._server.clock_us()
            return []
        if text in ("COMMIT", "ROLLBACK"):
            self._finish("ROLLBACK" if self._failed else text)
            return []
        if self._failed:
            raise psycopg.errors.InFailedSqlTransaction("the transaction has failed")
        if content is not None:
            insert, found = dialect.copy_in(text, content)
            for row in found:
                await self._run(insert.replace("?", "%s"), row)
        else:
            rows = await self._run(text, parameters)
        if not self._open:
            self._finish("COMMIT")
        return [] if content is not None else rows

    async def _run(self, text: str, parameters: Sequence[Any]) -> list[Row]:
        shard = self._server.shard(dialect.partition_of(text, parameters))
        statement, values = dialect.translate(text), dialect.to_sqlite(parameters)
        if "ON CONFLICT DO NOTHING" in text and self._is_there(shard, values):
            return []
        if dialect.is_write(text):
            await self._lock(shard)
        database = shard.writer if self._held is shard else shard.reader
        self._server.now_us = self._began_us if self._open else self._server.clock_us()
        try:
            return dialect.fetch(database.execute(statement, values))
        except sqlite3.IntegrityError as error:
            raise dialect.as_postgres(error) from None

    @staticmethod
    def _is_there(shard: Shard, key: Sequence[Any]) -> bool:
        """Return whether a cursor exists: then it is not written, and no lock is taken."""
        found = shard.reader.execute(
            "SELECT count(*) FROM cursors WHERE topic = ? AND partition = ?", key
        )
        return bool(found.fetchone()[0])

    async def _lock(self, shard: Shard) -> None:
        if self._held is shard:
            return
        assert self._held is None, "a transaction about two partitions"
        if shard.holder is None:
            shard.holder = self
        else:
            turn: asyncio.Future[None] = self._server.loop.create_future()
            shard.waiting.append((self, turn))
            await asyncio.wait([turn], timeout=LOCK_S)
            if not turn.done():
                turn.cancel()
                raise psycopg.errors.LockNotAvailable("lock timeout")
            if not self.alive:
                shard.give_up()
                raise psycopg.OperationalError("the session has ended")
        self._held = shard
        shard.writer.execute("BEGIN IMMEDIATE")

    def _finish(self, how: str) -> None:
        self._open = self._failed = False
        shard, self._held = self._held, None
        if shard is not None:
            shard.writer.execute(how)
            shard.give_up()
