"""TCP links that can be cut, muted, held and slowed: what lies between a program and its server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Literal

from streams.embedded.processes import LOOPBACK

CHUNK = 1 << 16
COMMIT = b"COMMIT"
LOST_REPLY_S = 0.25
"""How long the server has to carry out a commit whose reply is thrown away."""

Way = Literal["up", "down"]
Trap = Literal["reply", "request"]


@dataclass(eq=False, slots=True)
class _Connection:
    """One client's connection with the server's; ``muted`` throws the server's bytes away."""

    writers: tuple[asyncio.StreamWriter, asyncio.StreamWriter]
    muted: bool = False

    def abort(self) -> None:
        for writer in self.writers:
            writer.transport.abort()


@dataclass(eq=False)
class Link:
    """Listens on ``port`` and passes bytes to and from ``upstream``; both on loopback."""

    name: str
    port: int
    upstream: int
    trapped: int = 0
    _trap: Trap | None = None
    _delay_s: float = 0.0
    _open: dict[Way, asyncio.Event] = field(default_factory=dict)
    _connections: set[_Connection] = field(default_factory=set)
    _server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen."""
        self._open = {"up": asyncio.Event(), "down": asyncio.Event()}
        for gate in self._open.values():
            gate.set()
        self._server = await asyncio.start_server(self._serve, LOOPBACK, self.port)

    async def stop(self) -> None:
        """Close everything."""
        assert self._server is not None
        self._server.close()
        self.cut()
        await self._server.wait_closed()

    # -- faults

    def cut(self) -> None:
        """Reset every connection; what was under way is lost."""
        for connection in list(self._connections):
            connection.abort()

    @contextmanager
    def held(self, *ways: Way) -> Iterator[None]:
        """Let no byte pass these ways, and all of them afterwards."""
        for way in ways:
            self._open[way].clear()
        try:
            yield
        finally:
            for way in ways:
                self._open[way].set()

    @contextmanager
    def slow(self, delay_s: float) -> Iterator[None]:
        """Keep every piece for so long."""
        self._delay_s = delay_s
        try:
            yield
        finally:
            self._delay_s = 0.0

    def trap_commit(self, what: Trap) -> None:
        """Lose the next commit of a Postgres client, or only the server's reply to it."""
        self._trap = what

    @property
    def trapping(self) -> bool:
        """Whether the trap has not been sprung yet."""
        return self._trap is not None

    def heal(self) -> None:
        """Set no traps and delay nothing any more."""
        self._trap, self._delay_s = None, 0.0
        for gate in self._open.values():
            gate.set()

    # -- passing on

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server_reader, server_writer = await asyncio.open_connection(LOOPBACK, self.upstream)
        except OSError:
            writer.transport.abort()
            return
        connection = _Connection((writer, server_writer))
        self._connections.add(connection)
        tasks = [
            asyncio.create_task(self._pass("up", reader, server_writer, connection)),
            asyncio.create_task(self._pass("down", server_reader, writer, connection)),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            connection.abort()
            self._connections.discard(connection)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _pass(
        self, way: Way, reader: asyncio.StreamReader, writer: asyncio.StreamWriter,
        connection: _Connection,
    ) -> None:  # fmt: skip
        with suppress(OSError):
            while data := await reader.read(CHUNK):
                if self._delay_s:
                    await asyncio.sleep(self._delay_s)
                await self._open[way].wait()
                if way == "up" and self._trap is not None and COMMIT in data:
                    return await self._spring(data, writer, connection)
                if way == "down" and connection.muted:
                    continue
                writer.write(data)
                await writer.drain()

    async def _spring(
        self, data: bytes, writer: asyncio.StreamWriter, connection: _Connection
    ) -> None:
        trap, self._trap = self._trap, None
        self.trapped += 1
        if trap == "reply":
            connection.muted = True
            writer.write(data)
            await writer.drain()
            await asyncio.sleep(LOST_REPLY_S)
