"""The ledger's sinks, with everything that is theirs, over simulated servers; and their faults."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from functools import partial
from typing import Any

from streams import topics
from streams.ledger.heads import HeadPublisher
from streams.ledger.member import Sink
from streams.ledger.sink import follow
from streams.ledger.unit import Counts
from streams.ledger.writer import LedgerWriter
from tests.simulation.blocking import run_blocking
from tests.simulation.broker import Broker, Producer
from tests.simulation.connection import Connection
from tests.simulation.consumer import Consumer
from tests.simulation.database import Postgres
from tests.simulation.group import Group
from tests.simulation.plan import draw_sink_plan
from tests.simulation.process import Process, Rates

KEY = bytes(range(32))
SESSION_S = 5.0


class HeadProducer:
    """What ``HeadPublisher`` uses of a producer; heads have one partition."""

    def __init__(self, producer: Producer) -> None:
        self._producer = producer

    async def send(self, topic: str, value: bytes, *, key: bytes) -> asyncio.Future[Any]:
        """Hand one head over."""
        return await self._producer.send(topic, value, key=key, partition=0)


def publisher_without_kafka(producer: HeadProducer) -> HeadPublisher:
    """Return a publisher with another producer; when and what it publishes is its own."""
    publisher = HeadPublisher.__new__(HeadPublisher)
    publisher._topic, publisher._key = topics.LEDGER_HEADS, KEY
    publisher._producer = producer
    publisher._published, publisher._next_s = {}, 0.0
    return publisher


class SinkProcess:
    """One sink: the real member, writer and publisher, stepped as ``run_sink`` does."""

    def __init__(self, process: Process, world: Sinks) -> None:
        self.process = process
        self.stop = asyncio.Event()
        self.consumer = Consumer(world.broker, process, world.group, astray=world.astray)
        writer = LedgerWriter(
            "simulated",
            decisions=topics.DECISIONS,
            outcomes=topics.OUTCOMES,
            connect=lambda _: Connection(world.database, process, partial(world.disturb, self)),  # type: ignore[arg-type,return-value]
        )
        writer.counts = world.counts
        self.sink = Sink(
            self.consumer,
            writer,
            decisions=topics.DECISIONS,
            outcomes=topics.OUTCOMES,
            accept_gaps=False,
            heads=publisher_without_kafka(
                HeadProducer(Producer(world.broker, self, process)),
            ),
            in_thread=partial(run_blocking, process),
        )
        self.task = process.spawn(self._run())

    async def _run(self) -> None:
        await self.process.hop()
        self.sink.join()
        watch = self.process.spawn(self._watch())
        await follow(self.sink, stop=self.stop, beside=watch)
        watch.cancel()

    async def _watch(self) -> None:
        """End it if a partition stands still: nothing here gives a reason to."""
        while not self.sink.halted:
            await asyncio.sleep(1.0)
        raise next(iter(self.sink.halted.values()))


class Sinks:
    """All sinks of one seed, their group and their database.

    What is random here is drawn from a generator of its own: the workers' world is the same
    whatever becomes of the sinks.
    """

    def __init__(
        self, seed: int, loop: asyncio.AbstractEventLoop, broker: Broker, partitions: int
    ) -> None:
        self.chance = random.Random(f"sinks of {seed}")
        self.plan = draw_sink_plan(self.chance)
        self.broker = broker
        self.database = Postgres(loop)
        self.group = Group(partitions)
        self.counts = Counts()
        self.faults: Counter[str] = Counter()
        self.failure: BaseException | None = None
        self.healing = False
        self._members: list[SinkProcess] = []
        self._loop = loop
        self._tasks: set[asyncio.Task[Any]] = set()
        self._number = 0

    @property
    def astray(self) -> float:
        """How often a consumer reads from elsewhere."""
        return 0.0 if self.healing else self.plan.astray

    def begin(self) -> None:
        """Start the sinks and their faults."""
        for _ in range(self.plan.sinks):
            self._start()
        self._deal()
        for seconds, fault in (
            (self.plan.kill_s, self._kill),
            (self.plan.rebalance_s, self._rebalance),
            (self.plan.outage_s, self._outage),
        ):
            if seconds:
                self._background(self._at_random(seconds, fault))

    def _background(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _start(self) -> None:
        self._number += 1
        rates = Rates() if self.healing else self.plan.rates
        chance = random.Random(self.chance.random())
        process = Process(f"sink-{self._number}", chance, rates, self._on_exit)
        self._members.append(SinkProcess(process, self))

    def _on_exit(self, process: Process, error: BaseException | None) -> None:
        member = next(m for m in self._members if m.process is process)
        self._members.remove(member)
        self.failure = self.failure or error
        self.group.lose(member.consumer)
        if not self.healing:
            self._background(self._restart())

    async def _restart(self) -> None:
        await asyncio.sleep(self.chance.uniform(0.1, 3.0))
        self._start()
        self._deal()

    # -- the group

    def _deal(self) -> None:
        for partition in range(self.group.partitions):
            self._background(self._move(partition, self.chance.choice(self._members)))

    async def _move(self, partition: int, new: SinkProcess) -> None:
        old = self._owner(partition)
        if old is new:
            return
        if old is not None:
            abrupt = self.chance.random() < self.plan.abrupt
            lose = partial(self._lose, old, partition)
            if abrupt:
                self._background(self._later(self.chance.uniform(0.0, 20.0), lose))
            else:
                task = lose()
                if task is not None:
                    await asyncio.wait([task], timeout=20.0)
        if new.process.alive:
            self.group.give(partition, new.consumer)

    def _owner(self, partition: int) -> SinkProcess | None:
        owner = self.group.owner.get(partition)
        return next((m for m in self._members if m.consumer is owner), None)

    def _lose(self, member: SinkProcess, partition: int) -> asyncio.Task[Any] | None:
        epoch = member.consumer.epoch(partition)
        if epoch is None or not member.process.alive:
            return None
        return member.process.spawn(member.consumer.lose(partition, epoch))

    async def _later(self, seconds: float, act: Any) -> None:
        await asyncio.sleep(seconds)
        act()

    # -- faults

    async def _at_random(self, seconds: float, fault: Any) -> None:
        while True:
            await asyncio.sleep(self.chance.expovariate(1 / seconds))
            self.faults[f"sink_{fault.__name__.strip('_')}"] += 1
            fault()

    def disturb(self, member: SinkProcess) -> None:
        """Kill a sink, or put it to sleep, where it is about to do a statement."""
        if self.healing:
            return
        if self.chance.random() < self.plan.killed:
            self.faults["sink_killed_at_statement"] += 1
            member.process.end()
        elif self.chance.random() < self.plan.asleep:
            self.faults["sink_asleep_at_statement"] += 1
            self._sleep(member)

    def _kill(self) -> None:
        if self._members:
            self.chance.choice(self._members).process.end()

    def _sleep(self, member: SinkProcess) -> None:
        """Stop a sink; the group gives what it had to others, and later it goes on."""
        member.process.stop()
        self._loop.call_later(self.chance.uniform(1.0, 60.0), member.process.go_on)
        self._loop.call_later(SESSION_S, self._give_away, member)

    def _give_away(self, member: SinkProcess) -> None:
        others = [m for m in self._members if m is not member]
        if member.process._running.is_set() or not others or self.healing:
            return
        for partition in range(self.group.partitions):
            if self._owner(partition) is member:
                # It learns of that when it wakes, and then not at once.
                self._lose(member, partition)
                self.group.give(partition, self.chance.choice(others).consumer)

    def _rebalance(self) -> None:
        if self._members:
            self._deal()

    def _outage(self) -> None:
        """Take the database away, for a moment or for long."""
        if self.database.up:
            self.database.stop()
            seconds = self.chance.choice([0.2, 2.0, self.chance.uniform(5.0, 40.0)])
            self._loop.call_later(seconds, self.database.start)

    # -- healing

    def heal(self) -> None:
        """End every sink and every fault, and start one anew; nothing committed is lost."""
        self.healing = True
        for member in list(self._members):
            member.process.end()
        for task in list(self._tasks):
            task.cancel()
        self.database.start()
        self._start()
        (member,) = self._members
        for partition in range(self.group.partitions):
            self.group.give(partition, member.consumer)

    def is_behind(self) -> bool:
        """Return whether a record is not booked yet that consumers see."""
        return any(
            self._next_offset(topic, partition) <= records[-1].offset
            for partition in range(self.group.partitions)
            for topic in (topics.DECISIONS, topics.OUTCOMES)
            if (records := self.broker.records(topic, partition))
        )

    def _next_offset(self, topic: str, partition: int) -> int:
        found = self.database.shard(partition).reader.execute(
            "SELECT next_offset FROM cursors WHERE topic = ?", [topic]
        )
        (row,) = found.fetchall() or [(-1,)]
        return int(row[0])

    async def end(self) -> None:
        """Stop in good order."""
        (member,) = self._members
        member.stop.set()
        await asyncio.wait([member.task])
        member.task.result()
        if self.failure is not None:
            raise self.failure
