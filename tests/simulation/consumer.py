"""A consumer in a group, whose member may learn late of what it has lost, and one that rereads."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

from aiokafka import ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import IllegalStateError

from tests.simulation.broker import Broker, Record
from tests.simulation.group import Group
from tests.simulation.process import Process

FETCH_MAX = 40


class Consumer:
    """What ``Sink`` uses of aiokafka's consumer, and a member of the group.

    It may read from elsewhere than where it was told to: from the start of a log again, or, once
    at each place, leaving something out.
    """

    def __init__(self, broker: Broker, process: Process, group: Group, *, astray: float) -> None:
        self._broker = broker
        self._process = process
        self._group = group
        self._astray = astray
        self._topics: list[str] = []
        self._listener: ConsumerRebalanceListener | None = None
        self._wanted: dict[int, int] = {}
        self._held: dict[int, int] = {}
        self._changing = asyncio.Lock()
        self._positions: dict[TopicPartition, int] = {}
        self._paused: set[TopicPartition] = set()
        self._skipped: set[tuple[TopicPartition, int]] = set()

    # -- the group's wishes

    def take(self, partition: int, epoch: int) -> None:
        """Take a partition over."""
        self._wanted[partition] = epoch
        self._process.spawn(self._rebalance())

    async def release(self, partition: int) -> None:
        """Give a partition up."""
        self._wanted.pop(partition, None)
        await self._rebalance()

    async def lose(self, partition: int, epoch: int) -> None:
        """Learn that another has the partition since after this epoch."""
        if self._wanted.get(partition) == epoch:
            await self.release(partition)

    def epoch(self, partition: int) -> int | None:
        """Return since which epoch of the group it believes to have the partition."""
        return self._wanted.get(partition)

    async def _rebalance(self) -> None:
        async with self._changing:
            if self._listener is None or self._wanted == self._held:
                return
            await self._process.hop()
            await self._listener.on_partitions_revoked(self._places(self._held))
            await self._process.hop()
            self._held = dict(self._wanted)
            places = self._places(self._held)
            self._paused.clear()
            self._positions = {
                tp: self._group.committed.get((tp.topic, tp.partition), 0) for tp in places
            }
            await self._listener.on_partitions_assigned(places)

    def _places(self, partitions: Iterable[int]) -> set[TopicPartition]:
        return {TopicPartition(topic, p) for p in partitions for topic in self._topics}

    # -- what the sink calls

    def subscribe(self, topics: list[str], listener: ConsumerRebalanceListener) -> None:
        """Become a member."""
        self._topics, self._listener = topics, listener
        self._process.spawn(self._rebalance())

    def assignment(self) -> set[TopicPartition]:
        """Return what it believes to have."""
        return set(self._positions)

    def partitions_for_topic(self, topic: str) -> set[int]:
        """Return a topic's partitions."""
        return set(range(self._group.partitions))

    def paused(self) -> set[TopicPartition]:
        """Return what is not read."""
        return set(self._paused)

    def pause(self, *places: TopicPartition) -> None:
        """Do not read these."""
        for tp in places:
            self._check(tp)
            self._paused.add(tp)

    def resume(self, *places: TopicPartition) -> None:
        """Read these again."""
        for tp in places:
            self._check(tp)
            self._paused.discard(tp)

    def seek(self, tp: TopicPartition, offset: int) -> None:
        """Read on from here."""
        self._check(tp)
        self._positions[tp] = offset

    def _check(self, tp: TopicPartition) -> None:
        if tp not in self._positions:
            raise IllegalStateError(f"{tp} is not assigned")

    async def beginning_offsets(
        self, places: Iterable[TopicPartition]
    ) -> dict[TopicPartition, int]:
        """Return where the logs begin."""
        await self._process.hop()
        return dict.fromkeys(places, 0)

    async def end_offsets(self, places: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """Return where the logs end."""
        await self._process.hop()
        return {tp: len(self._broker.logs[tp.topic, tp.partition]) for tp in places}

    def highwater(self, tp: TopicPartition) -> int | None:
        """Return where the log ends, as far as is known."""
        assert tp in self._positions
        return len(self._broker.logs[tp.topic, tp.partition])

    async def getmany(
        self, *wanted: TopicPartition, timeout_ms: int, max_records: int | None = None
    ) -> dict[TopicPartition, list[Record]]:
        """Return what there is of these; if there is nothing, what there is after the timeout."""
        await self._process.hop()
        found = self._fetch(wanted)
        if not found:
            # Late, as on a busy machine: polling is most of what a seed takes.
            late = self._process.chance.uniform(1.0, 10.0)
            await asyncio.sleep(late * timeout_ms / 1_000)
            await self._process.gate()
            found = self._fetch(wanted)
        return found

    def _fetch(self, wanted: Sequence[TopicPartition]) -> dict[TopicPartition, list[Record]]:
        found: dict[TopicPartition, list[Record]] = {}
        chance = self._process.chance
        for tp, position in self._positions.items():
            end = len(self._broker.logs[tp.topic, tp.partition])
            if tp in self._paused or position >= end or (wanted and tp not in wanted):
                continue
            if chance.random() < self._astray:
                position = self._wrong_position(tp, position)
            records = self._broker.records(tp.topic, tp.partition, position)
            records = records[: chance.randint(1, FETCH_MAX)]
            if records:
                found[tp] = records
                self._positions[tp] = records[-1].offset + 1
        return found

    def _wrong_position(self, tp: TopicPartition, position: int) -> int:
        if self._process.chance.random() < 0.5:
            return 0
        # Twice in a row at one place would be what tells a hole.
        if (tp, position) in self._skipped:
            return position
        self._skipped.add((tp, position))
        return position + self._process.chance.randint(1, 5)

    async def commit(self, offsets: dict[TopicPartition, int]) -> None:
        """Commit to the group, which takes it of the owner alone."""
        await self._process.hop()
        for tp, offset in offsets.items():
            epoch = self._held.get(tp.partition)
            if epoch is not None:
                self._group.commit(self, epoch, {(tp.topic, tp.partition): offset})


class Rereader:
    """What the audit uses of aiokafka's consumer: it reads logs as they are."""

    def __init__(self, broker: Broker, partitions: int) -> None:
        self._broker = broker
        self._partitions = partitions
        self._place = TopicPartition("", 0)
        self._position = 0

    async def topics(self) -> set[str]:
        """Return the names of the topics."""
        return {topic for topic, _ in self._broker.logs}

    def partitions_for_topic(self, topic: str) -> set[int]:
        """Return a topic's partitions."""
        return set(range(self._partitions))

    def assign(self, places: list[TopicPartition]) -> None:
        """Read this one."""
        (self._place,) = places

    def seek(self, tp: TopicPartition, offset: int) -> None:
        """Read on from here."""
        self._position = offset

    async def position(self, tp: TopicPartition) -> int:
        """Return where it is."""
        return self._position

    async def beginning_offsets(self, places: list[TopicPartition]) -> dict[TopicPartition, int]:
        """Return where the logs begin."""
        return dict.fromkeys(places, 0)

    async def end_offsets(self, places: list[TopicPartition]) -> dict[TopicPartition, int]:
        """Return where the logs end."""
        return {tp: len(self._broker.logs[tp.topic, tp.partition]) for tp in places}

    async def getmany(self, *, timeout_ms: int) -> dict[TopicPartition, list[Any]]:
        """Return everything from the position on."""
        topic, partition = self._place
        start, self._position = self._position, len(self._broker.logs[topic, partition])
        return {self._place: self._broker.records(topic, partition, start)}
