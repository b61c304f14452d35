"""A broker: logs in memory, producers that may lose acknowledgements, readers without a group."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from aiokafka.errors import KafkaTimeoutError, ProducerFenced

from streams.fencing import OWNED
from streams.log import LogError
from tests.simulation.process import Process

START_MS = 1_763_000_000_000
READ_MAX = 50
BATCH_BYTES = 6_000


class Record(NamedTuple):
    """A record as consumers see it."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]] = ()
    is_marker: bool = False
    """It takes an offset, and readers never see it: what an empty transaction leaves."""


class Broker:
    """The logs by topic and partition, and the only clock that counts.

    Of the decisions and dead letters of a partition it refuses what others write than who was the
    last to :meth:`fence` them, see ``streams.fencing``.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.logs: dict[tuple[str, int], list[Record]] = defaultdict(list)
        self.skew_ms = 0
        self._writers: dict[int, object] = {}
        self.in_flight = 0
        self._loop = loop
        self._waiting: dict[tuple[str, int], list[asyncio.Future[None]]] = defaultdict(list)

    def now_ms(self) -> int:
        """Return the broker's time; it may jump, also back."""
        return START_MS + int(self._loop.time() * 1_000) + self.skew_ms

    def append(
        self, topic: str, partition: int, key: bytes | None, value: bytes | None,
        headers: Sequence[tuple[str, bytes]] = (), *, is_marker: bool = False,
    ) -> Record:  # fmt: skip
        """Append one record."""
        log = self.logs[topic, partition]
        record = Record(topic, partition, len(log), self.now_ms(), key, value, headers, is_marker)
        log.append(record)
        for waiter in self._waiting.pop((topic, partition), ()):
            if not waiter.done():
                waiter.set_result(None)
        return record

    def records(self, topic: str, partition: int, start: int = 0) -> list[Record]:
        """Return what a reader sees from an offset on."""
        return [r for r in self.logs[topic, partition][start:] if not r.is_marker]

    def fence(self, partition: int, writer: object) -> None:
        """From now on take from this writer alone what only the partition's owner may write."""
        self._writers[partition] = writer
        for topic in OWNED:
            self.append(topic, partition, None, None, is_marker=True)

    def refuses(self, writer: object, topic: str, partition: int) -> bool:
        """Return whether a record of this writer is refused."""
        return topic in OWNED and self._writers.get(partition) is not writer

    async def more(self, topic: str, partition: int, offset: int) -> None:
        """Return when there is a record at this offset."""
        while len(self.logs[topic, partition]) <= offset:
            waiter: asyncio.Future[None] = self._loop.create_future()
            self._waiting[topic, partition].append(waiter)
            await waiter


class Batch:
    """What ``create_batch`` returns: records up to a size."""

    def __init__(self, bytes_max: int) -> None:
        self.records: list[tuple[bytes | None, bytes | None, Sequence[tuple[str, bytes]]]] = []
        self._left = bytes_max

    def append(
        self, *, key: bytes | None, value: bytes | None, timestamp: int | None,
        headers: Sequence[tuple[str, bytes]] = (),
    ) -> object | None:  # fmt: skip
        """Take a record; None if it does not fit."""
        size = len(key or b"") + len(value or b"")
        if size > self._left:
            return None
        self._left -= size
        self.records.append((key, value, headers))
        return self

    def close(self) -> None:
        """Take no more."""
        self._left = -1

    def record_count(self) -> int:
        """Return how many records it holds."""
        return len(self.records)


class Producer:
    """A process' producer; batches of a partition arrive in order, or a prefix of them.

    What a process that was killed had handed over may arrive as well.
    """

    def __init__(self, broker: Broker, writer: object, process: Process) -> None:
        self._broker = broker
        self._writer = writer
        self._process = process
        self._queues: dict[tuple[str, int], deque[tuple[Batch, asyncio.Future[Any]]]] = {}
        self._chance = random.Random(process.chance.random())
        self._lost: set[tuple[str, int]] = set()

    def create_batch(self) -> Batch:
        """Return an empty batch."""
        return Batch(BATCH_BYTES)

    async def send_batch(self, batch: Batch, topic: str, *, partition: int) -> asyncio.Future[Any]:
        """Hand a batch over."""
        await self._process.gate()
        return self._hand_over(batch, topic, partition)

    async def send(
        self, topic: str, value: bytes | None, *, key: bytes | None, partition: int
    ) -> asyncio.Future[Any]:
        """Hand one record over."""
        batch = Batch(1 << 30)
        batch.append(key=key, value=value, timestamp=None)
        return await self.send_batch(batch, topic, partition=partition)

    def _hand_over(self, batch: Batch, topic: str, partition: int) -> asyncio.Future[Any]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        # Nobody may come to ask: its process can be dead by then.
        future.add_done_callback(lambda f: f.cancelled() or f.exception())
        queue = self._queues.get((topic, partition))
        if queue is None:
            queue = self._queues[topic, partition] = deque()
            self._broker.in_flight += 1
            # The loop keeps it: what is on the way outlives its process.
            loop.create_task(self._carry(topic, partition, queue))  # noqa: RUF006
        queue.append((batch, future))
        return future

    async def _carry(
        self, topic: str, partition: int, queue: deque[tuple[Batch, asyncio.Future[Any]]]
    ) -> None:
        chance, process = self._chance, self._process
        on_wire = chance.randrange(4)
        while queue:
            batch, future = queue.popleft()
            await asyncio.sleep(process.delay_s())
            if not process.alive:
                # Some of it had left the process already.
                if on_wire == 0:
                    break
                on_wire -= 1
            elif chance.random() < 0.5:
                await process._running.wait()
            lost = chance.random() < process.rates.lost_batch
            refused = self._broker.refuses(self._writer, topic, partition)
            if lost or refused:
                self._lost.add((topic, partition))
            if refused:
                self._answer(future, ProducerFenced())
                continue
            if (topic, partition) in self._lost:
                self._answer(future, KafkaTimeoutError())
                continue
            first: Record | None = None
            for key, value, headers in batch.records:
                record = self._broker.append(topic, partition, key, value, headers)
                first = first or record
            untold = chance.random() < process.rates.lost_ack
            self._answer(future, KafkaTimeoutError() if untold else first)
        del self._queues[topic, partition]
        self._broker.in_flight -= 1

    def _answer(self, future: asyncio.Future[Any], result: Any) -> None:
        """Tell the producer, after the time that an answer takes."""
        process = self._process

        async def tell() -> None:
            await process.hop()
            if not future.done():
                if isinstance(result, BaseException):
                    future.set_exception(result)
                else:
                    future.set_result(result)

        if process.alive:
            process.spawn(tell())


@dataclass(frozen=True, slots=True)
class Reader:
    """What ``streams.log.LogReader`` offers, for one process."""

    broker: Broker
    process: Process

    async def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        """Return the first offset and the one after the last."""
        await self.process.hop()
        return 0, len(self.broker.logs[topic, partition])

    async def read(
        self, topic: str, partition: int, start: int, end: int
    ) -> AsyncIterator[Sequence[Record]]:
        """Yield the records in ``[start, end)``."""
        if start >= end:
            return
        _, last = await self.bounds(topic, partition)
        if end > last:
            raise LogError(f"{topic}/{partition} ends at {last}, but {end} is needed")
        log = self.broker.logs[topic, partition]
        for begin in range(start, end, READ_MAX):
            await self.process.hop()
            found = [r for r in log[begin : min(begin + READ_MAX, end)] if not r.is_marker]
            if found:
                yield found
