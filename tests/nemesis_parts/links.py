"""TCP links that can be cut, muted, held and slowed: what lies between a program and its server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Literal

from streams.embedded.processes import LOOPBACK
from streams.topics import DECISIONS

CHUNK = 1 << 16
LOST_REPLY_S = 0.25
"""How long the server has to carry out a request whose reply is thrown away."""

Way = Literal["up", "down"]
What = Literal["reply", "request", "hold"]


def is_commit(data: bytes) -> bool:
    """Return whether a Postgres client asks to commit."""
    return b"COMMIT" in data


def is_produce(data: bytes) -> bool:
    """Return whether a Kafka client appends decisions: of all requests, Produce has the key 0."""
    return data[4:6] == b"\0\0" and DECISIONS.encode() in data


@dataclass(eq=False, slots=True)
class Trap:
    """Waits for a request: then its ``reply`` is lost, or itself, or everything is held."""

    matches: Callable[[bytes], bool]
    what: What
    sprung: asyncio.Event = field(default_factory=asyncio.Event)


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
    _trap: Trap | None = None
    _delay_s: float = 0.0
    _open: dict[Way, asyncio.Event] = field(default_factory=dict)
    _connections: set[_Connection] = field(default_factory=set)
    _serving: set[asyncio.Task[None]] = field(default_factory=set)
    _server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen."""
        self._open = {"up": asyncio.Event(), "down": asyncio.Event()}
        for gate in self._open.values():
            gate.set()
        self._server = await asyncio.start_server(self._accept, LOOPBACK, self.port)

    async def stop(self) -> None:
        """Close everything; nothing happens if it never listened."""
        if self._server is not None:
            self._server.close()
            self.cut()
            await self._server.wait_closed()
            await asyncio.gather(*self._serving)

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

    def set_trap(self, trap: Trap) -> None:
        """Let the next request that matches spring this trap."""
        self._trap = trap

    def has(self, trap: Trap) -> bool:
        """Whether the trap is still set."""
        return self._trap is trap

    def take_away(self, trap: Trap) -> None:
        """Set the trap no longer, if it is still there: nobody waits for it any more."""
        if self._trap is trap:
            self._trap = None

    def heal(self) -> None:
        """Set no traps and delay nothing any more."""
        self._trap, self._delay_s = None, 0.0
        for gate in self._open.values():
            gate.set()

    # -- passing on

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server_reader, server_writer = await asyncio.open_connection(LOOPBACK, self.upstream)
        except OSError:
            writer.transport.abort()
            return
        connection = _Connection((writer, server_writer))
        self._connections.add(connection)
        # Both ways end with the connection; one of them may be held just now.
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
                trap = self._trap
                if way == "up" and trap is not None and trap.matches(data):
                    self._trap = None
                    trap.sprung.set()
                    if trap.what != "hold":
                        return await self._lose(trap.what, data, writer, connection)
                    self._open["up"].clear()
                await self._open[way].wait()
                if way == "down" and connection.muted:
                    continue
                writer.write(data)
                await writer.drain()

    async def _lose(
        self, what: What, data: bytes, writer: asyncio.StreamWriter, connection: _Connection
    ) -> None:
        """Lose the request, or only its reply; when this returns the connection is reset."""
        if what == "reply":
            connection.muted = True
            writer.write(data)
            await writer.drain()
            await asyncio.sleep(LOST_REPLY_S)
