"""One seed: servers, workers, sinks and a load, faults for a while, then healing and the laws."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from aiokafka.errors import KafkaError

from policy.state import Limits
from streams import topics
from streams.faust_batches import ChangelogOverlapError, PartitionNotOwnedError
from streams.publisher import FencedError
from tests.simulation import compare, laws
from tests.simulation.books import check_books
from tests.simulation.broker import Broker
from tests.simulation.group import Group
from tests.simulation.load import Load, Shape, draw_shape
from tests.simulation.loop import SimLoop
from tests.simulation.plan import draw_plan
from tests.simulation.process import Process, Rates
from tests.simulation.sinks import Sinks
from tests.simulation.worker import Worker

HEAL_S = 500.0
CALM = Rates()
EXPECTED = (
    FencedError, ChangelogOverlapError, KafkaError, PartitionNotOwnedError, TimeoutError,
)  # fmt: skip
"""What may end a worker: it starts again and folds what it does not know."""


@dataclass(slots=True, kw_only=True)
class Result:
    """What one seed did."""

    seed: int
    faults: Counter[str] = field(default_factory=Counter)
    records: int = 0
    fenced: int = 0
    """How many workers ended because another one had shut them out."""
    in_doubt: int = 0
    """How many commits of sinks were found to be durable after their reply was lost."""
    fenced_sinks: int = 0
    transfers: int = 0
    simulated_s: float = 0.0
    digest: str = ""
    """Of every record of every log: the same seed must give the same."""


class Simulation:
    """The world of one seed."""

    def __init__(self, seed: int, loop: SimLoop) -> None:
        self.chance = random.Random(seed)
        self.plan = draw_plan(self.chance)
        self.result = Result(seed=seed)
        self.broker = Broker(loop)
        self.group = Group(self.plan.partitions)
        self.limits = Limits(
            reservation_ttl_ms=self.chance.choice([5_000, 30_000, 120_000]),
            defer_ms=self.chance.choice([0, 2_000, 10_000]),
        )
        roots = compare.roots_of(self.plan.partitions)
        self.shape: Shape = draw_shape(self.chance, tuple(roots))
        self.load = Load(self.broker, self.shape, random.Random(self.chance.random()), roots)
        self.sinks = Sinks(seed, loop, self.broker, self.plan.partitions)
        self.workers: list[Worker] = []
        self.healing = False
        self.failure: BaseException | None = None
        self._tasks: list[asyncio.Task[Any]] = []
        self._number = 0

    async def run(self) -> Result:
        """Run load and faults, heal, and check the laws."""
        self.load.declare()
        for _ in range(self.plan.workers):
            self.start_worker()
        self._rebalance(abrupt=True)
        self.sinks.begin()
        self._background(*(self.load.call_all(root) for root in self.shape.roots))
        faults = [self._background(work)[0] for work in self._faults()]
        await self._watched(self.load.send_all())
        for fault in faults:
            fault.cancel()
        await self._heal()
        await self._watched(self._quiet())
        for number in range(self.plan.partitions):
            laws.check_topics(
                self.broker, number, window=self.shape.window, sent=self._sent(number)
            )
            await compare.check_state(self, number)
        await self._check_ledger()
        self.result.records = sum(map(len, self.broker.logs.values()))
        self.result.simulated_s = asyncio.get_running_loop().time()
        self.result.digest = hashlib.sha256(
            repr(sorted(self.broker.logs.items())).encode()
        ).hexdigest()
        return self.result

    async def _check_ledger(self) -> None:
        await self.sinks.end()
        report = await check_books(self.sinks.database, self.broker, self.plan.partitions)
        counts = self.sinks.counts
        self.result.transfers = report.transfers
        self.result.in_doubt, self.result.fenced_sinks = counts.in_doubt, counts.fenced
        self.result.faults.update(self.sinks.faults)

    def _sent(self, partition: int) -> dict[str, bytes]:
        mine = {root for root, number in self.load.partition_of.items() if number == partition}
        return {n: v for n, v in self.load.sent.items() if self.load.root_of[n] in mine}

    def _background(self, *works: Any) -> list[asyncio.Task[Any]]:
        tasks = [asyncio.get_running_loop().create_task(work) for work in works]
        self._tasks += tasks
        return tasks

    async def _watched(self, work: Any) -> None:
        """Do something, unless a process fails as none may."""
        task = asyncio.get_running_loop().create_task(work)
        while not task.done():
            await asyncio.wait([task], timeout=1.0)
            failure = self.failure or self.sinks.failure
            if failure is not None:
                task.cancel()
                raise failure
        task.result()

    # -- processes

    def start_worker(self) -> None:
        """Start one more worker."""
        self._number += 1
        rates = CALM if self.healing else self.plan.rates
        chance = random.Random(self.chance.random())
        process = Process(f"worker-{self._number}", chance, rates, self._on_exit)
        self.workers.append(Worker(process, self.broker, self.group, self.limits))

    def _on_exit(self, process: Process, error: BaseException | None) -> None:
        worker = next(w for w in self.workers if w.process is process)
        self.workers.remove(worker)
        self.result.fenced += isinstance(error, FencedError)
        if error is not None and not isinstance(error, EXPECTED):
            self.failure = self.failure or error
        self.group.lose(worker)
        if not self.healing:
            self._background(self._restart())

    async def _restart(self) -> None:
        await asyncio.sleep(self.chance.uniform(0.1, 3.0))
        if not self.healing:
            self.start_worker()
            self._rebalance(abrupt=self.chance.random() < self.plan.abrupt)

    def _rebalance(self, *, abrupt: bool) -> None:
        """Deal the partitions anew; with ``abrupt`` nobody is asked to let go."""
        for partition in range(self.plan.partitions):
            self._background(self._move(partition, self.chance.choice(self.workers), abrupt))

    async def _move(self, partition: int, new: Worker, abrupt: bool) -> None:
        old = self.group.owner.get(partition)
        if isinstance(old, Worker) and old.process.alive:
            if abrupt:
                self._background(self._tell_late(old, partition))
            else:
                release = old.process.spawn(old.release(partition))
                await asyncio.wait([release], timeout=20.0)
        if new.process.alive and not (abrupt and new is old):
            self.group.give(partition, new)

    async def _tell_late(self, old: Worker, partition: int) -> None:
        holding = old.held.get(partition)
        await asyncio.sleep(self.chance.uniform(0.0, 20.0))
        await old.process.gate()
        if holding is not None:
            old.drop(holding)

    # -- faults

    def _faults(self) -> list[Any]:
        plan = self.plan
        return [
            self._at_random(seconds, fault)
            for seconds, fault in (
                (plan.kill_s, self._kill),
                (plan.stop_s, self._stop),
                (plan.rebalance_s, self._rebalance_now),
                (plan.clock_s, self._jump),
            )
            if seconds
        ]

    async def _at_random(self, seconds: float, fault: Any) -> None:
        while True:
            await asyncio.sleep(self.chance.expovariate(1 / seconds))
            if self.workers:
                self.result.faults[fault.__name__.strip("_")] += 1
                fault()

    def _kill(self) -> None:
        self.chance.choice(self.workers).process.end()

    def _stop(self) -> None:
        """Stop a worker; the group gives what it had to others, and later it goes on."""
        worker = self.chance.choice(self.workers)
        worker.process.stop()
        pause_s = self.chance.uniform(1.0, 25.0)
        loop = asyncio.get_running_loop()
        loop.call_later(pause_s, worker.process.go_on)
        if pause_s > 5.0:
            loop.call_later(5.0, self._give_away, worker)

    def _give_away(self, worker: Worker) -> None:
        others = [w for w in self.workers if w is not worker]
        for partition, owner in list(self.group.owner.items()):
            if owner is worker and others and not self.healing:
                self._background(self._tell_late(worker, partition))
                self.group.give(partition, self.chance.choice(others))

    def _rebalance_now(self) -> None:
        self._rebalance(abrupt=self.chance.random() < self.plan.abrupt)

    def _jump(self) -> None:
        low = -20_000 if self.plan.clock_back else 0
        self.broker.skew_ms += self.chance.randint(low, 20_000)

    # -- healing

    async def _heal(self) -> None:
        """End every process, let arrive what is on the way, and start anew without faults."""
        self.healing = True
        for worker in list(self.workers):
            worker.process.end()
        if self.failure is not None:
            raise self.failure
        while self.broker.in_flight:
            await asyncio.sleep(1.0)
        for task in self._tasks:
            if task.get_coro().__name__ not in ("call_all",):  # type: ignore[union-attr]
                task.cancel()
        if self.plan.lose_tables:
            for name in topics.TABLES:
                for number in range(self.plan.partitions):
                    self.broker.logs[topics.changelog("sim", name), number].clear()
        self.sinks.heal()
        for _ in range(min(2, self.plan.partitions)):
            self.start_worker()
        for partition in range(self.plan.partitions):
            self.group.give(partition, self.workers[partition % len(self.workers)])

    async def _quiet(self) -> None:
        """Return when everything is decided and reported, and nothing goes on any more."""
        loop = asyncio.get_running_loop()
        deadline, before, calm = loop.time() + HEAL_S, -1, 0
        while calm < 5:
            assert loop.time() < deadline, f"not quiet: {self._where()}"
            await asyncio.sleep(1.0)
            ends = [
                len(log)
                for (topic, _), log in self.broker.logs.items()
                if "log" not in topic and topic != topics.LEDGER_HEADS
            ]
            waiting = sum(
                len(h.partition.state.waiting) if h.partition else 1
                for w in self.workers
                for h in w.held.values()
            )
            same = sum(ends) == before and not waiting and not self.load.pending
            same = same and not self.sinks.is_behind()
            before, calm = sum(ends), calm + 1 if same else 0

    def _where(self) -> str:
        held = {
            h.number: h.partition and h.partition.state.gate.position
            for w in self.workers
            for h in w.held.values()
        }
        return f"{held}, {self.load.pending} reports pending"


def run_seed(seed: int) -> Result:
    """Run one seed; raises what it finds."""
    loop = SimLoop()
    asyncio.set_event_loop(loop)
    world = Simulation(seed, loop)
    try:
        return loop.run_until_complete(world.run())
    finally:
        asyncio.set_event_loop(None)
        loop.run_until_complete(_cancel_all())
        world.sinks.database.close()
        loop.close()


async def _cancel_all() -> None:
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
