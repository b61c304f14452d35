"""A consumer is stopped whatever its fetches do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from streams.stopping import stop_consumer


class Client:
    def __init__(self) -> None:
        self.closed = 0

    async def close(self) -> None:
        self.closed += 1


class Consumer:
    """Stops as it is told to, and closes its client in the end as aiokafka's does."""

    def __init__(self, stopping: Callable[[], Awaitable[None]]) -> None:
        self._stopping = stopping
        self._fetcher = None
        self._client = Client()

    async def stop(self) -> None:
        await self._stopping()
        await self._client.close()


async def cancelled_fetch() -> None:
    fetch = asyncio.ensure_future(asyncio.sleep(60))
    await asyncio.sleep(0)
    fetch.cancel()
    await fetch


async def refused() -> None:
    raise OSError("no way")


async def test_the_cancellation_of_a_fetch_is_not_ours() -> None:
    consumer = Consumer(cancelled_fetch)
    await stop_consumer(consumer)
    assert consumer._client.closed == 1


async def test_other_errors_are_told() -> None:
    with pytest.raises(OSError, match="no way"):
        await stop_consumer(Consumer(refused))


async def test_who_stops_can_be_cancelled() -> None:
    stopping = asyncio.ensure_future(stop_consumer(Consumer(lambda: asyncio.sleep(60))))
    await asyncio.sleep(0)
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
