"""What is waited for before a checkpoint: what was sent before it, and no more."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from streams.publisher import Outbox, OverlapError


class Producer:
    """Takes batches; each is acknowledged when the test says so."""

    def __init__(self) -> None:
        self.futures: list[asyncio.Future[Any]] = []

    def create_batch(self) -> Any:
        return SimpleNamespace(append=lambda **_: True, record_count=lambda: 1, close=lambda: None)

    async def send_batch(self, builder: Any, topic: str, *, partition: int) -> Any:
        self.futures.append(asyncio.get_running_loop().create_future())
        return self.futures[-1]

    def acknowledge(self, number: int, offset: int) -> None:
        self.futures[number].set_result(SimpleNamespace(offset=offset))


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_flush_does_not_wait_for_what_is_sent_after_it_began() -> None:
    producer = Producer()
    outbox = Outbox(producer, "decisions", 0)  # type: ignore[arg-type]
    await outbox.flush()
    await outbox.send(None, [b"a"], first_offset=4)
    flushed = asyncio.create_task(outbox.flush())
    await settle()
    await outbox.send(None, [b"b"], first_offset=5)
    await settle()
    assert not flushed.done()
    producer.acknowledge(0, 4)
    await asyncio.wait_for(flushed, 1)
    second = asyncio.create_task(outbox.flush())
    await settle()
    assert not second.done()
    producer.acknowledge(1, 5)
    await asyncio.wait_for(second, 1)


async def test_a_batch_that_lies_elsewhere_ends_the_flush() -> None:
    producer = Producer()
    outbox = Outbox(producer, "decisions", 0)  # type: ignore[arg-type]
    await outbox.send(None, [b"a"], first_offset=4)
    await settle()
    producer.acknowledge(0, 9)
    with pytest.raises(OverlapError, match="wrote at 9, expected 4"):
        await outbox.flush()
