"""A worker: the real partition, opener, outbox and follower, with what Faust does around them."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

from policy.catalog import Catalog
from policy.state import Limits
from streams import topics
from streams.faust_batches import ChangelogOverlapError, CheckpointTable, PartitionNotOwnedError
from streams.faust_batches.table import NO_REIGN, REIGN_HEADER, REIGN_KEY
from streams.following import Follower
from streams.intake import Intake
from streams.metrics import Metrics
from streams.opening import Opener
from streams.partition import Partition
from tests.simulation.broker import Batch, Broker, Producer, Reader
from tests.simulation.group import Group
from tests.simulation.process import Process

CHECKPOINT_S = 1.0
BATCH_MAX = 20
RELEASE_S = 15.0
APP = "sim"


class Holding:
    """A partition that a worker believes to own, in an epoch of the group."""

    def __init__(self, number: int, epoch: int) -> None:
        self.number = number
        self.epoch = epoch
        self.partition: Partition | None = None
        self.tasks: list[asyncio.Task[Any]] = []
        self.requests, self.outcomes = asyncio.Lock(), asyncio.Lock()
        self.ended = False
        self.gone = asyncio.Event()


class Table(CheckpointTable):
    """The real table, without the app around it; each partition has its own tables here."""

    def __init__(self, worker: Worker, name: str) -> None:
        self.name = name
        self.app = _App(worker)  # type: ignore[assignment]
        self._worker = worker
        self._topic = topics.changelog(APP, name)
        self._values = {}
        self._locks = defaultdict(asyncio.Lock)
        self._reigns = {}
        self._next = {}
        self._late = {}
        self._covered = {}

    async def put(
        self, partition: int, values: Mapping[bytes, bytes | None], *, reign: int | None = None
    ) -> None:
        """Write values as the table does, as an owner of this partition."""
        _writing.set(partition)
        await super().put(partition, values, reign=reign)

    async def _late_keys(self, partition: int, gaps: Iterable[tuple[int, int]]) -> set[bytes]:
        """Return what the table's own method would read of the broker, by the same rule."""
        await self._worker.process.hop()
        log, keys = self._worker.broker.logs[self._topic, partition], set()
        for start, end in gaps:
            for record in log[start:end]:
                reign = int(dict(record.headers).get(REIGN_HEADER, NO_REIGN))
                if record.key == REIGN_KEY or reign >= self._reigns[partition]:
                    raise ChangelogOverlapError(self._topic, partition, start, record.offset)
                keys.add(record.key)
        return keys

    @property
    def changelog_topic_name(self) -> str:  # type: ignore[override]
        return self._topic

    async def take_over(self, broker: Broker, partition: int) -> None:
        """Restore a partition, as ``streams.faust_batches.recovery`` does."""
        self.open_partitions({partition})
        log = broker.logs[self._topic, partition]
        at = len(log)
        self.restore(partition, log)
        await self.begin_reign(partition)
        self.restore(partition, log[at:])
        await self.uncover(partition, next_offset=len(log))


_writing: ContextVar[int] = ContextVar("partition")


class _App:
    """What a table asks of its app: whether it is a member, and a producer."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    @property
    def consumer(self) -> _App:
        return self

    @property
    def producer(self) -> _App:
        return self

    async def confirm_membership(self) -> bool:
        await self._worker.process.hop()
        member = self._worker.is_owner(_writing.get())
        # What happens after this line and before the records arrive is what tables must bear.
        await self._worker.process.hop()
        return member

    async def send(
        self, topic: str, key: bytes, value: bytes | None, partition: int,
        timestamp: None, headers: Sequence[tuple[str, bytes]] | None,
    ) -> asyncio.Future[Any]:  # fmt: skip
        batch = Batch(1 << 30)
        batch.append(key=key, value=value, timestamp=None, headers=headers or ())
        return await self._worker.table_producer.send_batch(batch, topic, partition=partition)


def follower_without_kafka() -> Follower:
    """Return a follower that is fed by hand; applying records is its own."""
    follower = Follower.__new__(Follower)
    follower.catalog = Catalog()
    follower.learned = {}
    follower.statistics_offset = 0
    follower.refused = {}
    return follower


def plain_intake(catalog: Catalog) -> Intake:
    """Return the intake of requests that bring their features."""
    return Intake(catalog, None)


class Worker:
    """One worker process."""

    def __init__(self, process: Process, broker: Broker, group: Group, limits: Limits) -> None:
        self.process = process
        self.broker = broker
        self.group = group
        self.held: dict[int, Holding] = {}
        self.producer = Producer(broker, self, process)
        self.table_producer = Producer(broker, self, process)
        self.tables = {
            partition: {name: Table(self, name) for name in topics.TABLES}
            for partition in range(group.partitions)
        }
        self.follower = follower_without_kafka()
        self._positions = {topics.CATALOG: 0, topics.STATISTICS: 0}
        self.opener = Opener(
            reader=Reader(broker, process),  # type: ignore[arg-type]
            follower=self.follower,
            make_intake=plain_intake,
            tables={},
            partitions=group.partitions,
            producer=self.producer,
            limits=limits,
            metrics=Metrics(),
            features=lambda: "given",
            late_values=self._late_values,
        )
        process.spawn(self._run())

    async def open(self, number: int, owned: Producer | None = None) -> Partition:
        """Open a partition from its tables, as they are now."""
        opener = replace(self.opener, tables=self.tables[number])
        return await opener.open(number, owned)  # type: ignore[arg-type]

    def _late_values(self, partition: int) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        for table in self.tables[partition].values():
            found.update(table.late_values(partition))
        return found

    async def _run(self) -> None:
        await self.process.hop()
        for topic in self._positions:
            self._follow(topic)
            self.process.spawn(self._follow_on(topic))

    def _follow(self, topic: str) -> None:
        log = self.broker.logs[topic, 0]
        for record in log[self._positions[topic] :]:
            self.follower._apply(topic, record)
        self._positions[topic] = len(log)

    async def _follow_on(self, topic: str) -> None:
        while True:
            await self.broker.more(topic, 0, self._positions[topic])
            await self.process.hop()
            self._follow(topic)

    # -- the group's wishes

    def take(self, partition: int, epoch: int) -> None:
        """Take a partition over, in the epoch that the group says."""
        old = self.held.get(partition)
        if old is not None and not old.ended:
            self.drop(old)
        holding = Holding(partition, epoch)
        holding.tasks.append(self.process.spawn(self._open(holding, old)))

    async def release(self, partition: int) -> None:
        """Give a partition up in good order, if the group still lets us."""
        holding = self.held.get(partition)
        if holding is None or holding.ended:
            return
        holding.ended = True
        opened = holding.partition
        if opened is not None:
            async with asyncio.timeout(RELEASE_S), holding.requests, holding.outcomes:
                if await self._confirm(holding):
                    await opened.checkpoint(everything=True)
                    await self._commit(holding)
        self.drop(holding)

    def drop(self, holding: Holding) -> None:
        """Forget a partition, with nothing flushed; a checkpoint under way goes on."""
        holding.ended = True
        for task in holding.tasks:
            task.cancel()
        holding.gone.set()
        if self.held.get(holding.number) is holding:
            del self.held[holding.number]

    def is_owner(self, partition: int) -> bool:
        """Return whether the group says that the partition is ours, as far as we know."""
        holding = self.held.get(partition)
        return holding is not None and self.group.is_owner(self, partition, holding.epoch)

    async def _confirm(self, holding: Holding) -> bool:
        await self.process.hop()
        return self.group.is_owner(self, holding.number, holding.epoch)

    # -- what Faust does

    async def _open(self, holding: Holding, old: Holding | None) -> None:
        number = holding.number
        if old is not None:
            await old.gone.wait()
        await self.process.hop()
        if holding.ended or not self.group.is_owner(self, number, holding.epoch):
            return
        self.held[number] = holding
        await asyncio.gather(
            *(t.take_over(self.broker, number) for t in self.tables[number].values())
        )
        while not self.follower.catalog.arms:
            await self.process.hop()
        if not await self._confirm(holding):
            return
        # Whoever is the owner by now is shut out as well, and ends, as it is with the real one.
        await self.process.hop()
        self.broker.fence(number, holding)
        await self.process.hop()
        partition = await self.open(number, Producer(self.broker, holding, self.process))
        if holding.ended:
            return
        holding.partition = partition
        requests = self.group.committed.get((topics.REQUESTS, number), 0)
        outcomes = partition.state.gate.position.outcomes
        loops = (
            self._deliver(
                holding, topics.REQUESTS, requests, holding.requests, partition.on_requests
            ),
            self._deliver(
                holding, topics.OUTCOMES, outcomes, holding.outcomes, partition.on_outcomes
            ),
            self._checkpoints(holding, partition),
        )
        holding.tasks += [self.process.spawn(loop) for loop in loops]

    async def _deliver(
        self, holding: Holding, topic: str, position: int, busy: asyncio.Lock, body: Any
    ) -> None:
        log = self.broker.logs[topic, holding.number]
        while True:
            await self.broker.more(topic, holding.number, position)
            await self.process.hop()
            size = self.process.chance.randint(1, BATCH_MAX)
            records = log[position : position + size]
            async with busy:
                if holding.ended:
                    return
                await body(records)
            position = records[-1].offset + 1

    async def _checkpoints(self, holding: Holding, partition: Partition) -> None:
        while True:
            await asyncio.sleep(CHECKPOINT_S)
            await self.process.gate()
            step = self.process.spawn(self._checkpoint(holding, partition))
            await asyncio.wait([step])

    async def _checkpoint(self, holding: Holding, partition: Partition) -> None:
        # A rebalance may take the partition away in the middle: its next owner folds.
        with suppress(PartitionNotOwnedError):
            await partition.tick()
            await partition.checkpoint()
            await self._commit(holding)

    async def _commit(self, holding: Holding) -> None:
        partition = holding.partition
        assert partition is not None
        offsets = {
            (topic, holding.number): position
            for topic in (topics.REQUESTS, topics.OUTCOMES)
            if (position := partition.commit_position(topic)) is not None
        }
        await self.process.hop()
        self.group.commit(self, holding.epoch, offsets)
