"""Producers of requests and callers of models, all of them: sends, answers decisions, keeps log."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError

from streams.topics import DEAD_LETTERS, DECISIONS, OUTCOMES, REQUESTS
from tests.nemesis_parts.content import Content, Item
from tests.nemesis_parts.oracle import OracleLog, Place
from tests.nemesis_parts.world import PARTITIONS

TICK_S = 0.05
BACKLOG_TICKS = 10
ACK_S = 6.0
"""After so long without an acknowledgement a record's fate is unknown."""
AGAIN = 0.7
"""Share of those records that are sent once more."""


class Called(msgspec.Struct):
    """What a caller reads of a decision."""

    decision_id: str
    request_id: str
    budget: str
    arm: str | None = None
    input_tokens: int = 0
    max_output_tokens: int = 0
    reserved_nanousd: int = 0


class Lay(msgspec.Struct):
    """What a dead letter says of where its record lies."""

    topic: str
    partition: int
    offset: int


class Load:
    """Sends ``rate`` requests a second, and outcomes for the decisions that it reads.

    Parameters
    ----------
    kafka : str
        Where to send: a link that may be cut.
    direct : str
        Where to read decisions and dead letters.
    careful : bool
        Whether to wait for each acknowledgement as long as it takes, and to send nothing twice.
    """

    def __init__(
        self, content: Content, oracle: OracleLog, *, kafka: str, direct: str, rate: float,
        careful: bool = False,
    ) -> None:  # fmt: skip
        self._content, self._oracle, self._rate = content, oracle, rate
        self._direct, self._careful = direct, careful
        self._producer = AIOKafkaProducer(
            bootstrap_servers=kafka,
            acks="all",
            enable_idempotence=careful,
            request_timeout_ms=600_000 if careful else int(ACK_S * 1_000),
            retry_backoff_ms=100,
            linger_ms=5,
            max_batch_size=1 << 18,
        )
        self._chance = random.Random(0)
        self._due: list[tuple[float, int, Item]] = []
        self._number = itertools.count()
        self._order = itertools.count()
        self._tasks: list[asyncio.Task[None]] = []
        self._in_flight = 0
        self._seen: set[str] = set()
        self._acknowledged: dict[str, str] = {}
        self._waiting: dict[int, dict[str, int]] = defaultdict(dict)
        self._ends: dict[int, int] = defaultdict(int)
        self.letters: set[Place] = set()
        self.positions: dict[int, int] = defaultdict(int)
        self.copies = 0
        self.sent = 0
        self.sending = True
        self.decided_at = 0.0

    async def start(self) -> None:
        """Connect and begin."""
        await self._producer.start()
        self._tasks = [asyncio.create_task(self._send()), asyncio.create_task(self._read())]

    async def stop(self) -> None:
        """End."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._producer.stop()
        self._oracle.close()

    def check(self) -> None:
        """Raise what has ended the sending or the reading."""
        for task in self._tasks:
            if task.done():
                task.result()

    @property
    def idle(self) -> bool:
        """Whether everything was sent, and acknowledged or given up."""
        return not self.sending and not self._due and not self._in_flight

    @property
    def undecided(self) -> int:
        """Return how many acknowledged requests have no decision yet."""
        return len(self._acknowledged.keys() - self._seen)

    def caught_up(self) -> Callable[[], bool]:
        """Return what tells whether all that is acknowledged now has been decided.

        It goes by the budgets that never run out: others may have to wait for money.
        """
        ends = dict(self._ends)

        def done() -> bool:
            return all(
                next(iter(self._waiting[partition].values()), end + 1) > end
                for partition, end in ends.items()
            )

        return done

    async def probe(self) -> set[Place]:
        """Send a bad record to each partition of requests and outcomes; return their places."""
        places = set()
        for topic, number in itertools.product((REQUESTS, OUTCOMES), range(PARTITIONS)):
            item = self._content.probe(topic, number)
            serial = self._intend(item)
            self._oracle.sync()
            told = await self._producer.send_and_wait(item.topic, item.value, key=item.key)
            self._oracle.acknowledged(serial, told.partition, told.offset)
            places.add((topic, told.partition, told.offset))
        return places

    # -- sending

    async def _send(self) -> None:
        began, count, backlog = time.monotonic(), 0, Counter[str]()
        for tick in itertools.count():
            now = time.monotonic()
            if tick % BACKLOG_TICKS == 0:
                undecided = self._acknowledged.keys() - self._seen
                backlog = Counter(self._acknowledged[name] for name in undecided)
            while self.sending and count < (now - began) * self._rate:
                items = list(self._content.requests(next(self._number)))
                root = items[0][1].key.decode()
                if backlog[root] < self._content.backlog_max(root):
                    self._plan(now, items)
                count += 1
            items = []
            while self._due and self._due[0][0] <= now:
                items.append(heapq.heappop(self._due)[2])
            if items:
                await self._send_all(items)
            await asyncio.sleep(max(TICK_S - (time.monotonic() - now), 0.0))

    def _plan(self, now: float, items: Any) -> None:
        for delay_s, item in items:
            heapq.heappush(self._due, (now + delay_s, next(self._order), item))

    def _intend(self, item: Item) -> int:
        return self._oracle.intend(item.topic, item.key, item.value, item.kind, item.request_id)

    async def _send_all(self, items: list[Item]) -> None:
        self._in_flight += len(items)
        serials = [self._intend(item) for item in items]
        await asyncio.to_thread(self._oracle.sync)
        for item, serial in zip(items, serials, strict=True):
            self.sent += 1
            try:
                future = await self._producer.send(
                    item.topic, item.value, key=item.key, partition=item.partition
                )
            except KafkaError:
                self._failed(serial, item)
            else:
                future.add_done_callback(partial(self._told, serial, item))

    def _told(self, serial: int, item: Item, future: asyncio.Future[Any]) -> None:
        if future.cancelled() or future.exception() is not None:
            self._failed(serial, item)
            return
        self._in_flight -= 1
        place = future.result()
        self._oracle.acknowledged(serial, place.partition, place.offset)
        if item.topic == REQUESTS and item.kind == "good":
            self._acknowledged[item.request_id] = item.key.decode()
            self._ends[place.partition] = place.offset
            rich = self._content.is_rich(item.key.decode())
            if rich and item.request_id not in self._seen:
                self._waiting[place.partition][item.request_id] = place.offset

    def _failed(self, serial: int, item: Item) -> None:
        self._in_flight -= 1
        self._oracle.unknown(serial)
        if not self._careful and self._chance.random() < AGAIN:
            self._plan(time.monotonic(), [(0.5, item)])

    # -- reading

    async def _read(self) -> None:
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self._direct,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=50,
        )
        await consumer.start()
        try:
            await consumer._client.force_metadata_update()
            topics = (DECISIONS, DEAD_LETTERS)
            consumer.assign([TopicPartition(t, p) for t in topics for p in range(PARTITIONS)])
            while True:
                for place, records in (await consumer.getmany(timeout_ms=100)).items():
                    for record in records:
                        self._see(place, record)
        finally:
            await consumer.stop()

    def _see(self, place: TopicPartition, record: Any) -> None:
        if place.topic == DEAD_LETTERS:
            lay = msgspec.json.decode(record.value, type=Lay)
            self.letters.add((lay.topic, lay.partition, lay.offset))
            return
        self.positions[place.partition] = record.offset + 1
        decision = msgspec.json.decode(record.value, type=Called)
        if decision.request_id in self._seen:
            self.copies += 1
            return
        self.decided_at = time.monotonic()
        self._seen.add(decision.request_id)
        self._waiting[place.partition].pop(decision.request_id, None)
        self._plan(self.decided_at, self._content.outcomes(decision))
