"""Does the faults to the cluster, many at a time, and measures how long each was felt."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial

import psycopg

from streams.ledger.database import connection_string
from streams.topics import DECISIONS
from tests.nemesis_parts.cluster import Cluster, Slot
from tests.nemesis_parts.links import Link, Trap, is_commit, is_produce
from tests.nemesis_parts.load import Load
from tests.nemesis_parts.plan import CALM, Fault

WORKERS_WANTED = (1, 4, 2, 3, 4, 2)
QUIET_S = 12.0
"""After so long without a decision no fault is done to workers or broker until there is one."""
SLOW_S = 0.08
ARRIVING_S = 1.5
TAKEN_OVER_S = 15.0
"""How long others may take to take over before a sleeper is woken all the same."""
SIGHT_S = 3.0
"""How long to wait for the right moment."""
ENDING_S = 15.0
HEALING_S = 180.0
POLL_S = 0.1
FELT = {"worker_kill": "worker", "broker_kill": "broker", "postgres_crash": "postgres"}
"""Kinds whose recovery is measured."""


class Nemesis:
    """Does faults as they were drawn.

    ``measures`` says whether to wait for the recovery from each: of a system that loses nothing.
    """

    def __init__(
        self, cluster: Cluster, load: Load, faults: Iterator[Fault], *, measures: bool = True
    ) -> None:
        self._cluster, self._load, self._measures = cluster, load, measures
        self._faults = faults
        self._families = {
            "worker": self._worker,
            "sink": partial(self._process, "sink"),
            "broker": self._kill_broker,
            "postgres": self._crash_postgres,
            "ledger": self._ledger,
            "load": self._cut_load,
        }
        self._busy: set[object] = set()
        self._running: set[asyncio.Task[bool]] = set()
        self._measuring: set[asyncio.Task[None]] = set()
        self.done: Counter[str] = Counter()
        self.recovery_s: dict[str, list[float]] = defaultdict(list)
        self.cursors: dict[int, int] = {}
        self.lasted_s = 0.0

    async def run(
        self, seconds: float, *, more_s: float = 0.0, enough: Callable[[], bool] = lambda: True
    ) -> None:
        """Do faults for so long, and up to ``more_s`` longer until ``enough`` has come of them.

        Those under way then are brought to their end.
        """
        watching = asyncio.create_task(self._watch_ledger())
        began = time.monotonic()
        deadline = began + seconds
        try:
            wait = True
            for fault in self._faults:
                skipped = self._is_stuck() and fault.kind not in CALM
                await asyncio.sleep(POLL_S if skipped else fault.gap_s if wait else 0.0)
                late_s = time.monotonic() - deadline
                if late_s >= more_s or (late_s >= 0.0 and enough()):
                    break
                if skipped:
                    continue
                self._load.check()
                task = asyncio.create_task(self._do(fault))
                self._running.add(task)
                task.add_done_callback(self._ended)
                await asyncio.sleep(POLL_S)
                # There was nobody to do it to: the next comes at once.
                wait = not task.done() or task.result()
            self.lasted_s = time.monotonic() - began
            self._load.sending = False
            if self._running:
                await asyncio.wait(self._running, timeout=ENDING_S)
            # Commits that nobody makes any more are not waited for.
            self._cluster.heal()
            await asyncio.gather(*self._running)
            # What has not recovered by then is found when everything is checked.
            if self._measuring:
                await asyncio.wait(self._measuring, timeout=HEALING_S)
        finally:
            tasks = [watching, *self._running, *self._measuring]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, task: asyncio.Task[bool]) -> None:
        if not task.cancelled() and task.exception() is None:
            self._running.discard(task)

    def _is_stuck(self) -> bool:
        return time.monotonic() - self._load.decided_at > QUIET_S

    async def _do(self, fault: Fault) -> bool:
        """Do a fault; return whether that was possible."""
        began = time.strftime("%H:%M:%S")
        done = await self._families[fault.kind.partition("_")[0]](fault)
        if done:
            self.done[fault.kind] += 1
            ended = time.strftime("%H:%M:%S")
            with (self._cluster.folder / "faults.log").open("a") as log:
                log.write(f"{began} to {ended} {fault.kind} {fault.choice:.3f}\n")
        return done

    @contextmanager
    def _alone(self, target: object) -> Iterator[bool]:
        """Yield whether nobody else does something to the target just now."""
        free = target not in self._busy
        self._busy.add(target)
        try:
            yield free
        finally:
            if free:
                self._busy.discard(target)

    def _pick(self, kind: str, choice: float, *, left: int = 0) -> Slot | None:
        """Return one of the processes to which nothing is done, if so many others are left."""
        slots = [slot for slot in self._cluster.up(kind) if slot not in self._busy]
        return slots[int(choice * len(slots))] if len(slots) > left else None

    # -- processes

    async def _worker(self, fault: Fault) -> bool:
        if fault.kind == "worker_scale":
            return self._scale(fault)
        return await self._process("worker", fault)

    async def _process(self, kind: str, fault: Fault) -> bool:
        what = fault.kind.removeprefix(f"{kind}_")
        # Somebody must be there to take over, or it would only be a pause.
        slot = self._pick(kind, fault.choice, left=int(what in ("sleep", "link_hold")))
        if slot is None:
            return False
        if what.startswith("produce"):
            return await self._lose(slot.name, is_produce, what.endswith("reply_lost"))
        with self._alone(slot):
            if what.startswith("link"):
                return await self._link(slot.name, what, fault)
            if what == "kill":
                slot.signal(signal.SIGKILL)
                self._measure(fault.kind, time.monotonic())
            else:
                slot.signal(signal.SIGSTOP)
                await self._until_taken_over(kind, fault.length_s)
                slot.signal(signal.SIGCONT)
        return True

    async def _until_taken_over(self, kind: str, length_s: float) -> None:
        """Wait so long, and on until all partitions are worked on by others."""
        began = time.monotonic()
        # What was under way may still arrive.
        await asyncio.sleep(min(ARRIVING_S, length_s))
        before = dict(self._reached(kind))
        deadline = began + (TAKEN_OVER_S if len(self._cluster.up(kind)) > 1 else length_s)
        while time.monotonic() < deadline:
            now = self._reached(kind)
            taken = all(now[number] > before.get(number, 0) for number in now)
            if taken and time.monotonic() > began + length_s:
                return
            await asyncio.sleep(POLL_S)

    def _reached(self, kind: str) -> Mapping[int, int]:
        """Return how far workers have decided, or sinks have booked."""
        return self._load.positions if kind == "worker" else self.cursors

    def _scale(self, fault: Fault) -> bool:
        """Start or stop workers in good order, so that there are as many as were drawn."""
        wanted = WORKERS_WANTED[int(fault.choice * len(WORKERS_WANTED))]
        slots = [slot for slot in self._cluster.of("worker") if slot not in self._busy]
        now = sum(slot.wanted for slot in self._cluster.of("worker"))
        changed = [slot for slot in slots if slot.wanted != (wanted > now)][: abs(wanted - now)]
        for slot in changed:
            slot.want(wanted > now)
        return bool(changed)

    # -- servers

    async def _kill_broker(self, fault: Fault) -> bool:
        with self._alone(self._cluster.broker) as free:
            if not free:
                return False
            began = time.monotonic()
            await asyncio.to_thread(self._cluster.broker.kill)
            await asyncio.sleep(fault.length_s)
            await asyncio.to_thread(self._cluster.broker.start)
            self._measure(fault.kind, began)
        return True

    async def _crash_postgres(self, fault: Fault) -> bool:
        with self._alone(self._cluster.postgres) as free:
            if not free:
                return False
            began = time.monotonic()
            await asyncio.to_thread(self._cluster.postgres.stop, "immediate")
            await asyncio.sleep(fault.length_s)
            await asyncio.to_thread(self._cluster.postgres.start)
            self._measure(fault.kind, began)
        return True

    # -- links

    async def _cut_load(self, fault: Fault) -> bool:
        return await self._link("load", "link_cut", fault)

    async def _ledger(self, fault: Fault) -> bool:
        what = fault.kind.removeprefix("ledger_")
        if what.startswith("link"):
            return await self._link("ledger", what, fault)
        return await self._lose("ledger", is_commit, what.endswith("reply_lost"))

    async def _lose(self, name: str, matches: Callable[[bytes], bool], reply: bool) -> bool:
        """Lose the next commit of a ledger's client, or decisions of a worker, or the reply."""
        link = self._cluster.links[name]
        with self._alone((link, "trap")) as free:
            if not free:
                return False
            trap = Trap(matches, "reply" if reply else "request")
            link.set_trap(trap)
            while link.has(trap):
                await asyncio.sleep(POLL_S)
            return trap.sprung.is_set()

    async def _link(self, name: str, what: str, fault: Fault) -> bool:
        link = self._cluster.links[name]
        with self._alone(link) as free:
            if not free:
                return False
            if what == "link_mute":
                with link.held("down"):
                    await asyncio.sleep(fault.length_s)
                    link.cut()
            elif what == "link_hold":
                if name == "ledger":
                    await hold(link, partial(asyncio.sleep, fault.length_s))
                else:
                    await hold(link, partial(self._until_taken_over, "worker", fault.length_s))
            elif what == "link_slow":
                with link.slow(SLOW_S):
                    await asyncio.sleep(fault.length_s)
            else:
                link.cut()
        return True

    # -- recovery

    def _measure(self, kind: str, began: float) -> None:
        """Note when everything from before the fault has been dealt with."""
        if kind not in FELT or not self._measures:
            return
        felt = FELT[kind]
        done = self._booked() if felt == "postgres" else self._load.caught_up()
        self._measuring.add(asyncio.create_task(self._await(felt, done, began)))

    async def _await(self, felt: str, done: Callable[[], bool], began: float) -> None:
        while not done():
            await asyncio.sleep(POLL_S)
        self.recovery_s[felt].append(time.monotonic() - began)

    def _booked(self) -> Callable[[], bool]:
        ends = dict(self._load.positions)
        return lambda: all(self.cursors.get(p, 0) >= end for p, end in ends.items())

    async def _watch_ledger(self) -> None:
        """Keep up to date how far the decisions are booked; past the links, not through them."""
        url = connection_string(self._cluster.database_url)
        while True:
            try:
                async with await psycopg.AsyncConnection.connect(
                    url, autocommit=True, connect_timeout=2
                ) as connection:
                    while True:
                        rows = await connection.execute(
                            "SELECT partition, next_offset FROM cursors WHERE topic = %s",
                            [DECISIONS],
                        )
                        self.cursors = dict(await rows.fetchall())
                        await asyncio.sleep(2 * POLL_S)
            except psycopg.Error:
                await asyncio.sleep(2 * POLL_S)


async def hold(link: Link, until: Callable[[], Awaitable[None]]) -> None:
    """Hold what a client sends, from when it matters: what it has sent arrives too late."""
    trap = Trap(is_commit if link.name == "ledger" else is_produce, "hold")
    link.set_trap(trap)
    with suppress(TimeoutError):
        await asyncio.wait_for(trap.sprung.wait(), SIGHT_S)
    # Sprung later, it would hold the link for good.
    link.take_away(trap)
    with link.held("up"):
        await until()
