"""The links that the nemesis disturbs must be whole again when a fault is over."""

from __future__ import annotations

import asyncio

import pytest

from streams.embedded.processes import LOOPBACK, free_port
from tests.nemesis_parts import faults
from tests.nemesis_parts.links import Link


async def test_a_hold_that_saw_nothing_to_hold_leaves_the_link_open(
    monkeypatch: pytest.MonkeyPatch,
):
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            writer.write(data)
        writer.close()

    monkeypatch.setattr(faults, "SIGHT_S", 0.05)
    server = await asyncio.start_server(echo, LOOPBACK)
    link = Link("ledger", free_port(), server.sockets[0].getsockname()[1])
    await link.start()
    try:
        await faults.hold(link, lambda: asyncio.sleep(0.05))
        reader, writer = await asyncio.open_connection(LOOPBACK, link.port)
        writer.write(b"COMMIT")
        assert await asyncio.wait_for(reader.readexactly(6), 5) == b"COMMIT"
        writer.close()
    finally:
        await link.stop()
        server.close()
