"""What a producer of requests and a caller of models need; also the examples of how to do it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from streams import topics
from streams.following import entry_key
from streams.records import BadRecordError, CatalogEntry, Decision, Outcome, Request, decode, encode
from streams.stopping import stop_consumer


def root_of(budget: str) -> bytes:
    """Return the key of every record of this budget."""
    return budget.partition("/")[0].encode()


class Client:
    """Sends requests, outcomes and catalog entries, and reads decisions.

    ``async with Client(kafka) as client: ...``
    """

    def __init__(self, kafka: str) -> None:
        self.kafka = kafka
        self._producer = AIOKafkaProducer(
            bootstrap_servers=kafka, acks="all", enable_idempotence=True, linger_ms=2
        )

    async def __aenter__(self) -> Client:
        await self._producer.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._producer.stop()

    async def send(self, request: Request) -> asyncio.Future[Any]:
        """Queue a request; the future tells where it was appended."""
        future: asyncio.Future[Any] = await self._producer.send(
            topics.REQUESTS, encode(request), key=root_of(request.budget)
        )
        return future

    async def report(self, budget: str, outcome: Outcome) -> asyncio.Future[Any]:
        """Queue an outcome of a request of this budget."""
        future: asyncio.Future[Any] = await self._producer.send(
            topics.OUTCOMES, encode(outcome), key=root_of(budget)
        )
        return future

    async def declare(self, entries: Iterable[CatalogEntry]) -> None:
        """Write catalog entries; returns when they are durable."""
        sent = [
            await self._producer.send(topics.CATALOG, encode(entry), key=entry_key(entry))
            for entry in entries
        ]
        await asyncio.gather(*sent)

    async def retire(self, key: str) -> None:
        """Remove a catalog entry by its key, such as ``arm:gpt-4o@openai``."""
        await self._producer.send_and_wait(topics.CATALOG, None, key=key.encode())

    async def send_raw(self, topic: str, key: bytes | None, value: bytes) -> None:
        """Send bytes as they are."""
        await self._producer.send_and_wait(topic, value, key=key)

    async def flush(self) -> None:
        """Return when everything that was queued is durable."""
        await self._producer.flush()


class Decisions:
    """Reads decisions as they come; of several for one request only the first counts.

    ``async for decision in Decisions(kafka, from_start=True): ...`` ends when :meth:`stop` is
    called. ``remembered`` is how many requests are remembered to tell later copies.
    """

    def __init__(self, kafka: str, *, from_start: bool = False, remembered: int = 1 << 20) -> None:
        self._from_start = from_start
        self._remembered = remembered
        self._seen: dict[str, None] = {}
        self.copies = 0
        self._consumer = AIOKafkaConsumer(
            bootstrap_servers=kafka,
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="earliest" if from_start else "latest",
            fetch_max_wait_ms=50,
        )
        self._stopping = asyncio.Event()

    async def start(self) -> None:
        """Connect and take the positions from which to read."""
        await self._consumer.start()
        await self._consumer._client.force_metadata_update()  # without a group nothing asks for it
        numbers = self._consumer._client.cluster.partitions_for_topic(topics.DECISIONS) or ()
        partitions = [TopicPartition(topics.DECISIONS, number) for number in numbers]
        self._consumer.assign(partitions)
        if self._from_start:
            await self._consumer.seek_to_beginning(*partitions)
        else:
            await self._consumer.seek_to_end(*partitions)
        for partition in partitions:
            await self._consumer.position(partition)

    async def stop(self) -> None:
        """Let the iteration end."""
        self._stopping.set()

    async def batches(self) -> AsyncIterator[list[tuple[Decision, Any]]]:
        """Yield what each fetch brings: effective decisions with their records."""
        try:
            while not self._stopping.is_set():
                fetched = await self._consumer.getmany(timeout_ms=200)
                fresh = [d for records in fetched.values() for d in self._effective(records)]
                if fresh:
                    yield fresh
        finally:
            await stop_consumer(self._consumer)

    def _effective(self, records: Iterable[Any]) -> Iterable[tuple[Decision, Any]]:
        for record in records:
            try:
                decision = decode(Decision, record.value)
            except BadRecordError:
                continue
            if decision.decision_id in self._seen:
                self.copies += 1
                continue
            self._seen[decision.decision_id] = None
            if len(self._seen) > self._remembered:
                del self._seen[next(iter(self._seen))]
            yield decision, record
