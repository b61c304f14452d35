"""How long decisions are missing after a worker was killed with -9.

The worker holds so many open reservations on as many budgets and is started again at once by the
supervisor, while requests go on to come. Beside it the same is done to an aiokafka echo in a
consumer group: what it needs is the price of a new process and of the group's rebalance.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaProducer

from streams import topics
from streams.bench.backlog import Ends, create_topics, produce
from streams.bench.core import Say
from streams.bench.figures import ratio, ratio_lines, spread, table
from streams.bench.programs import ProgramError, worker_settings
from streams.bench.workload import Workload
from streams.client import Client
from streams.publisher import make_producer
from streams.supervise import Supervisor

SIZES = (10_000, 100_000)
SOURCE, TARGET = "bench.recovery.in", "bench.recovery.out"
KEPT_UP_S = 0.5
"""Lag counts as zero when everything is answered that was sent so long ago."""
CALM_S = 6.0
"""Time with traffic before a kill: some pages of every kind have been written, some are dirty."""
_DEADLINE_S = 300.0
_PART = 50


@dataclass(slots=True, kw_only=True)
class Feed:
    """Sends requests at a rate, whatever becomes of them, and remembers how many by when."""

    producer: AIOKafkaProducer
    topic: str
    workload: Workload
    rate: int
    sent: int = 0
    _history: deque[tuple[float, int]] = field(default_factory=deque)

    async def run(self) -> None:
        """Send until cancelled."""
        begun = time.monotonic()
        for number in range(sys.maxsize):
            for key, value in self.workload.requests(_PART, number=number, tag=self.topic):
                await self.producer.send(self.topic, value, key=key)
            self.sent += _PART
            self._history.append((time.monotonic(), self.sent))
            await asyncio.sleep(max(begun + self.sent / self.rate - time.monotonic(), 0.0))

    def due(self) -> int:
        """Return how many were sent so long ago that they should have been answered."""
        until = time.monotonic() - KEPT_UP_S
        while len(self._history) > 1 and self._history[1][0] <= until:
            self._history.popleft()
        return self._history[0][1] if self._history and self._history[0][0] <= until else 0


@dataclass(slots=True, kw_only=True)
class Victim:
    """A supervised program that is killed, and the topics by which it is judged."""

    supervisor: Supervisor
    name: str
    target: str
    ends: Ends
    feed: Feed
    before: int
    """Records of the target that are not answers to the feed."""
    exact: bool
    """Whether it answers every request once; where not, nobody can count how far behind it is."""

    async def caught_up(self) -> None:
        """Wait until everything is answered that should be."""
        deadline = time.monotonic() + _DEADLINE_S
        while await self._behind():
            self.supervisor.check()
            if time.monotonic() > deadline:
                raise ProgramError(f"{self.name} has not caught up after {_DEADLINE_S} s")
            await asyncio.sleep(0.05)

    async def _behind(self) -> bool:
        wanted = self.before + self.feed.due()
        # Counting reads the records; the ends say at once when there cannot be enough.
        return (
            await self.ends.total(self.target) < wanted
            or await self.ends.records(self.target) < wanted
        )

    async def kill(self, calm_s: float) -> dict[str, float]:
        """Kill it; return the seconds until its first new record, and until it has caught up."""
        await asyncio.sleep(calm_s)
        await self.caught_up()
        killed, at_ms = time.monotonic(), time.time() * 1_000
        self.supervisor.kill(self.name)
        # What the dead had sent reaches the broker within this.
        await asyncio.sleep(0.1)
        since = await self.ends.ends(self.target)
        while not (times := await self.ends.append_times(self.target, since)):
            self.supervisor.check()
            if time.monotonic() > killed + _DEADLINE_S:
                raise ProgramError(f"{self.name} wrote nothing for {_DEADLINE_S} s")
            await asyncio.sleep(0.05)
        if self.exact:
            await self.caught_up()
        caught_up_s = time.monotonic() - killed
        found = {"first_s": (times[0] - at_ms) / 1_000}
        return found | {"caught_up_s": caught_up_s} if self.exact else found


async def measure(
    kafka: str, home: Path, *, size: int, rate: int, rounds: int, session_s: int, say: Say,
    calm_s: float = CALM_S,
) -> dict[str, list[dict[str, float]]]:  # fmt: skip
    """Return what every round took, of the worker with ``size`` open reservations and the echo."""
    workload = Workload(budgets=size)
    partitions = workload.partitions
    await topics.create(kafka, app_id="tollway", partitions=partitions)
    await create_topics(kafka, [SOURCE, TARGET], partitions=partitions)
    async with Client(kafka) as client:
        await client.declare(workload.entries())
    await produce(kafka, topics.REQUESTS, workload.requests(size), partitions=partitions)
    settings = worker_settings(
        kafka, home, partitions=partitions, RESERVATION_TTL_S=86_400, SESSION_TIMEOUT_S=session_s
    )
    echo = [sys.executable, "-m", "streams.bench.echo"]
    producer = make_producer(kafka)
    await producer.start()
    async with (
        Ends(kafka, partitions=partitions) as ends,
        Supervisor(home / "logs", settings) as supervisor,
        Supervisor(home / "logs", {}, command=echo) as echoes,
    ):
        await supervisor.start("worker", "worker")
        await _opened(ends, supervisor, size)
        say(f"{size:,} reservations on {size:,} budgets are open")
        await echoes.start("echo", "group", kafka, SOURCE, TARGET, f"{session_s}")
        victims = {
            name: Victim(
                supervisor=by, name=name, target=target, ends=ends, before=before,
                exact=name == "worker",
                feed=Feed(producer=producer, topic=source, workload=workload, rate=rate),
            )
            for name, by, source, target, before in (
                ("worker", supervisor, topics.REQUESTS, topics.DECISIONS, size),
                ("echo", echoes, SOURCE, TARGET, 0),
            )
        }  # fmt: skip
        feeding = [asyncio.create_task(victim.feed.run()) for victim in victims.values()]
        found: dict[str, list[dict[str, float]]] = {name: [] for name in victims}
        try:
            for number in range(rounds):
                for name, victim in victims.items():
                    found[name].append(await victim.kill(calm_s))
                told = ", ".join(f"{n} {f[-1]['first_s']:.1f} s" for n, f in found.items())
                say(f"round {number + 1} of {rounds}: first record after {told}")
        finally:
            for task in feeding:
                task.cancel()
            await asyncio.gather(*feeding, return_exceptions=True)
            await producer.stop()
    return found


async def _opened(ends: Ends, supervisor: Supervisor, size: int) -> None:
    deadline = time.monotonic() + _DEADLINE_S
    while await ends.records(topics.DECISIONS) < size:
        supervisor.check()
        if time.monotonic() > deadline:
            raise ProgramError(f"{size} requests were not decided in {_DEADLINE_S} s")
        await asyncio.sleep(0.2)


def summarise(
    found: dict[int, dict[str, list[dict[str, float]]]], shape: dict[str, Any]
) -> dict[str, Any]:
    """Return medians and spreads by number of reservations, and ratios to the echo."""
    return {
        "seconds": {
            str(size): {
                name: {what: spread([r[what] for r in rounds], 2) for what in rounds[0]}
                for name, rounds in programs.items()
            }
            for size, programs in found.items()
        },
        "ratios": {
            f"first_{size}_to_echo": ratio(
                [r["first_s"] for r in programs["worker"]],
                [r["first_s"] for r in programs["echo"]],
            )
            for size, programs in found.items()
        },
        "shape": shape,
    }


def show(result: dict[str, Any]) -> str:
    """Return the result as a table."""
    rows: list[Sequence[Any]] = [
        [f"{name}, {what}", int(size), *seconds.values()]
        for size, programs in result["seconds"].items()
        for name, figures in programs.items()
        for what, seconds in figures.items()
    ]
    text = table(rows, header=["seconds after kill -9", "reservations", "median", "min", "max"])
    return f"{text}\n{ratio_lines(result['ratios'])}"
