"""A partition's newest owner alone writes its decisions and dead letters, on a real broker."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiokafka.errors import ProducerFenced

from policy.state import Limits
from streams import fencing, topics
from streams.client import Client
from streams.embedded import KafkaServer
from streams.fencing import OWNED, FencedProducer, Fences
from streams.following import Follower
from streams.intake import Intake
from streams.log import LogReader
from streams.metrics import Metrics
from streams.opening import Opener
from streams.publisher import FencedError, Outbox, make_producer
from streams.records import DeadLetter, Decision, decode
from streams.topics import DEAD_LETTERS, DECISIONS
from tests.deployment import budget_tree, make_request, policy_and_arms

pytestmark = pytest.mark.kafka
PARTITIONS = 8


@pytest.fixture(scope="module")
def kafka(servers_root: Path) -> Iterator[str]:
    server = KafkaServer(servers_root / "kafka-fencing")
    address = server.start()
    asyncio.run(topics.create(address, app_id="fencing", partitions=PARTITIONS))
    yield address
    server.kill()


@asynccontextmanager
async def owner(kafka: str, partition: int) -> AsyncIterator[FencedProducer]:
    made = await FencedProducer.open(kafka, app_id="fencing", partition=partition)
    try:
        yield made
    finally:
        await made.close()


@asynccontextmanager
async def reading(kafka: str) -> AsyncIterator[LogReader]:
    reader = LogReader(kafka)
    await reader.start()
    try:
        yield reader
    finally:
        await reader.stop()


async def held(reader: LogReader, topic: str, partition: int) -> list[tuple[int, bytes]]:
    first, end = await reader.bounds(topic, partition)
    return [
        (record.offset, record.value)
        async for records in reader.read(topic, partition, first, end)
        for record in records
    ]


async def test_what_an_overtaken_owner_sends_is_refused_on_both_topics(kafka: str) -> None:
    async with owner(kafka, 0) as old:
        for topic in OWNED:
            outbox = Outbox(old.producer, topic, 0)
            await outbox.send(None, [b"a", b"b"], first_offset=1)
            await outbox.flush()
        async with owner(kafka, 0) as new, reading(kafka) as reader:
            for topic in OWNED:
                assert (await reader.bounds(topic, 0))[1] == 4
                late = Outbox(old.producer, topic, 0)
                await late.send(None, [b"late"])
                with pytest.raises(FencedError, match=f"{topic}/0"):
                    await late.flush()
                mine = Outbox(new.producer, topic, 0)
                await mine.send(None, [b"c"], first_offset=4)
                await mine.flush()
                await late.send(None, [b"later"])
                with pytest.raises(FencedError):
                    await late.flush()
                assert await held(reader, topic, 0) == [(1, b"a"), (2, b"b"), (4, b"c")]


async def test_an_owner_that_wrote_nothing_before_it_was_overtaken_is_refused(kafka: str) -> None:
    async with owner(kafka, 1) as old, owner(kafka, 1) as new:
        with pytest.raises(ProducerFenced):
            await old.producer.send_and_wait(topics.DECISIONS, b"late", partition=1)
        assert (await new.producer.send_and_wait(topics.DECISIONS, b"b", partition=1)).offset == 2


async def test_a_partition_is_shut_to_its_former_owner_only(kafka: str) -> None:
    async with owner(kafka, 2) as other, owner(kafka, 3), owner(kafka, 3):
        sent = await other.producer.send_and_wait(topics.DECISIONS, b"a", partition=2)
        assert sent.offset == 1


async def test_asking_the_coordinator_to_remember_shuts_nobody_out(kafka: str) -> None:
    async with owner(kafka, 4) as first:
        await first.keep()
        await first.keep()
        assert (await first.producer.send_and_wait(OWNED[0], b"a", partition=4)).offset == 1
        async with owner(kafka, 4) as second:
            # Even if the first one does not know yet.
            await first.keep()
            with pytest.raises(ProducerFenced):
                await first.producer.send_and_wait(OWNED[0], b"late", partition=4)
            assert (await second.producer.send_and_wait(OWNED[0], b"b", partition=4)).offset == 3


async def test_of_owners_that_come_at_once_the_last_alone_writes(kafka: str) -> None:
    made = await asyncio.gather(
        *(FencedProducer.open(kafka, app_id="fencing", partition=5) for _ in range(4)),
        return_exceptions=True,
    )
    owners = [found for found in made if isinstance(found, FencedProducer)]
    assert not [found for found in made if not isinstance(found, FencedProducer | FencedError)]
    async with owner(kafka, 5) as last:
        for overtaken in owners:
            with pytest.raises(ProducerFenced):
                await overtaken.producer.send_and_wait(OWNED[0], b"late", partition=5)
            await overtaken.close()
        await last.producer.send_and_wait(OWNED[0], b"a", partition=5)


async def test_readers_pass_markers_also_the_last(kafka: str) -> None:
    topic = topics.DECISIONS
    async with reading(kafka) as reader:
        assert await reader.records_end(topic, 6) == 0
        async with owner(kafka, 6), owner(kafka, 6) as second:
            assert await held(reader, topic, 6) == []
            assert await reader.records_end(topic, 6) == 0
            for number in range(3):
                await second.producer.send_and_wait(topic, b"%d" % number, partition=6)
        async with owner(kafka, 6), owner(kafka, 6):
            assert (await reader.bounds(topic, 6))[1] == 7
            assert await held(reader, topic, 6) == [(2, b"0"), (3, b"1"), (4, b"2")]
            assert await reader.records_end(topic, 6) == 5
            assert [r.value for r in await reader.last(topic, 6, 2)] == [b"1", b"2"]


async def test_fences_close_what_they_opened_when_one_fails(
    kafka: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fences = Fences(kafka, app_id="fencing")
    producers = await fences.open([6, 7])
    await producers[7].send_and_wait(OWNED[1], b"a", partition=7)
    fences.give_up()
    real, made = FencedProducer.open, []

    async def failing(*args: str, app_id: str, partition: int) -> FencedProducer:
        if partition == 7:
            raise FencedError(topics.DECISIONS, 7)
        made.append(await real(*args, app_id=app_id, partition=partition))
        return made[-1]

    monkeypatch.setattr(FencedProducer, "open", failing)
    with pytest.raises(FencedError):
        await fences.open([6, 7])
    await fences.close()
    assert all(producer._closed for producer in producers.values())
    assert all(owned.producer._closed for owned in made)


@asynccontextmanager
async def opener(kafka: str) -> AsyncIterator[Opener]:
    """Yield what opens partitions for a worker without tables, which folds the whole log."""
    follower, reader, producer = Follower(kafka), LogReader(kafka), make_producer(kafka)
    services = (follower, reader, producer)
    for service in services:
        await service.start()
    try:
        yield Opener(
            reader=reader, follower=follower, make_intake=lambda catalog: Intake(catalog, None),
            tables={}, partitions=PARTITIONS, producer=producer, limits=Limits(),
            metrics=Metrics(), features=lambda: "given",
        )  # fmt: skip
    finally:
        for service in services:
            await service.stop()


async def test_an_overtaken_partition_ends_in_an_error_and_nothing_of_it_is_appended(
    kafka: str,
) -> None:
    root = next(f"r{n}" for n in range(99) if topics.home_partition(b"r%d" % n, PARTITIONS) == 0)
    async with Client(kafka) as client:
        await client.declare([*policy_and_arms(), *budget_tree(root, 10**12)])
        for number in range(6):
            await client.send(make_request(root, f"q-{number}"))
        await client.send_raw(topics.REQUESTS, root.encode(), b"not a request")
        await client.flush()
    async with opener(kafka) as opening, reading(kafka) as reader:
        start = (await reader.bounds(topics.DECISIONS, 0))[1]
        _, end = await reader.bounds(topics.REQUESTS, 0)
        requests = [r async for part in reader.read(topics.REQUESTS, 0, 0, end) for r in part]
        async with owner(kafka, 0) as first:
            old = await opening.open(0, first.producer)
            # Right behind the marker, and foretold to lie there.
            assert old.state.gate.position.decisions == start + 1
            await old.on_requests(requests[:2])
            await old.decisions.flush()
            async with owner(kafka, 0) as second:
                new = await opening.open(0, second.producer)
                assert new.state.gate.position.decisions == start + 4
                late = (
                    (requests[6:], topics.DEAD_LETTERS, old.dead_letters.flush),
                    (requests[2:4], topics.DECISIONS, old.decisions.flush),
                )
                for records, topic, flush in late:
                    before = await reader.bounds(topic, 0)
                    await old.on_requests(records)
                    with pytest.raises(FencedError, match=f"{topic}/0"):
                        await flush()
                    assert await reader.bounds(topic, 0) == before
                await new.on_requests(requests)
                await new.dead_letters.flush()
        placed = {
            decode(Decision, value).request_id: offset
            for offset, value in await held(reader, DECISIONS, 0)
            if offset > start
        }
        assert [placed[f"q-{n}"] - start for n in range(6)] == [1, 2, 4, 5, 6, 7]
        letters = [
            decode(DeadLetter, value) for _, value in (await held(reader, DEAD_LETTERS, 0))[3:]
        ]
        assert [(letter.topic, letter.offset) for letter in letters] == [(topics.REQUESTS, 6)]
        async with owner(kafka, 0) as third:
            again = await opening.open(0, third.producer)
            assert again.state.gate.position.decisions == start + 9


async def test_a_producer_whose_broker_is_silent_is_closed_all_the_same(
    servers_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fencing, "CLOSE_S", 0.5)
    server = KafkaServer(servers_root / "kafka-silent")
    address = await asyncio.to_thread(server.start)
    await topics.create(address, app_id="fencing", partitions=1)
    made = await FencedProducer.open(address, app_id="fencing", partition=0)
    assert server.pid is not None
    os.kill(server.pid, signal.SIGSTOP)
    try:
        sent = await made.producer.send(DECISIONS, b"a", partition=0)
        async with asyncio.timeout(10):
            await made.close()
        assert made.producer._sender.sender_task.done()
        assert not sent.done() or sent.exception() is not None
    finally:
        server.kill()
