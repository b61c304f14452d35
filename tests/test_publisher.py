"""What is waited for before a checkpoint: what was sent before it, and no more."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from streams.bench.backlog import create_topics
from streams.embedded import KafkaServer
from streams.log import LogReader
from streams.publisher import Outbox, OverlapError, make_producer, to_the_wire


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


async def records(kafka: str, topic: str) -> list[tuple[int, bytes]]:
    reader = LogReader(kafka)
    await reader.start()
    try:
        return [(record.offset, record.value) for record in await reader.last(topic, 0, 100)]
    finally:
        await reader.stop()


@pytest.mark.kafka
@pytest.mark.parametrize("forgotten", ["never", "before", "meanwhile"])
async def test_a_broker_that_is_away_for_longer_than_a_request_may_take_is_waited_for(
    kafka_server: KafkaServer, topic_prefix: str, forgotten: str
) -> None:
    """Whatever the producer knows of the topic's leader: it may never have asked, or forget it."""
    kafka = kafka_server.start()
    await create_topics(kafka, [topic_prefix], partitions=1)
    producer = make_producer(kafka, request_timeout_ms=300)
    await producer.start()
    outbox = Outbox(producer, topic_prefix, 0)
    try:
        await outbox.send(None, [b"a"], first_offset=0)
        await outbox.flush()
        kafka_server.kill()
        if forgotten == "before":
            producer.client.cluster._partitions = {}
        await outbox.send(None, [b"b", b"c"], first_offset=1)
        await outbox.send(None, [b"d"], first_offset=3)
        await settle()
        if forgotten == "meanwhile":
            producer.client.cluster._partitions = {}
        flushed = asyncio.create_task(outbox.flush())
        asked = asyncio.create_task(outbox.broker_time(b"e"))
        await asyncio.wait({flushed, asked}, timeout=2.0, return_when=asyncio.FIRST_COMPLETED)
        assert not flushed.done() and not asked.done()
        kafka_server.start()
        await asyncio.wait_for(flushed, 60)
        assert await asyncio.wait_for(asked, 60) > 0
    finally:
        kafka_server.start()
        await producer.stop()
    found = await records(kafka, topic_prefix)
    assert [value for _, value in found if value != b"e"] == [b"a", b"b", b"c", b"d"]
    assert [offset for offset, _ in found] == list(range(5))


async def test_a_batch_that_lies_elsewhere_ends_the_flush() -> None:
    producer = Producer()
    outbox = Outbox(producer, "decisions", 0)  # type: ignore[arg-type]
    await outbox.send(None, [b"a"], first_offset=4)
    await settle()
    producer.acknowledge(0, 9)
    with pytest.raises(OverlapError, match="wrote at 9, expected 4"):
        await outbox.flush()


async def test_a_batch_is_with_the_broker_before_the_next_is_worked_on(kafka: str) -> None:
    await create_topics(kafka, ["publisher"], partitions=1)
    producer = make_producer(kafka)
    await producer.start()
    try:
        outbox = Outbox(producer, "publisher", 0)
        await outbox.send(None, [b"first"])
        await outbox.flush()
        sent: list[str] = []
        send = producer.client.send

        def noting(node_id: int, request: Any, **group: Any) -> Any:
            sent.append(type(request).__name__)
            return send(node_id, request, **group)

        producer.client.send = noting
        await outbox.send(None, [b"second"])
        assert sent == []
        await to_the_wire()
        assert sent == ["ProduceRequest"]
        await outbox.flush()
    finally:
        await producer.stop()
