"""A process that can be killed at any await, stopped, and delayed; and its way to the servers."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """How likely each fault is at the places where it can happen; drawn from the seed."""

    slow: float = 0.0
    """A step takes up to ``slow_s`` instead of milliseconds."""
    slow_s: float = 10.0
    lost_ack: float = 0.0
    """A batch is appended, its producer is told that it was not."""
    lost_batch: float = 0.0
    """A batch is not appended, nor any after it of this producer."""
    database: float = 0.0
    """A statement fails; a commit is in doubt."""


@dataclass(slots=True, eq=False)
class Process:
    """One process; ``on_exit`` is called once, with what ended it (None: it was killed)."""

    name: str
    chance: random.Random
    rates: Rates
    on_exit: Callable[[Process, BaseException | None], None]
    alive: bool = True
    _running: asyncio.Event = field(default_factory=asyncio.Event)
    _tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._running.set()

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run something as part of this process: if it fails, the process ends."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.end(task.exception())

    def end(self, error: BaseException | None = None) -> None:
        """End at once, as by kill -9 or ``os._exit``; what is on the way may still arrive."""
        if not self.alive:
            return
        self.alive = False
        self._running.set()
        for task in list(self._tasks):
            task.cancel()
        self.on_exit(self, error)

    def stop(self) -> None:
        """Stop, as by SIGSTOP."""
        self._running.clear()

    def go_on(self) -> None:
        """Go on, as by SIGCONT."""
        self._running.set()

    async def hop(self) -> None:
        """Take the time of one message to a server or back."""
        await asyncio.sleep(self.delay_s())
        await self.gate()

    async def gate(self) -> None:
        """Wait while the process is stopped; for ever if it has ended."""
        await self._running.wait()
        if not self.alive:
            raise asyncio.CancelledError

    def delay_s(self) -> float:
        """Return how long the next message takes."""
        if self.chance.random() < self.rates.slow:
            return self.chance.uniform(0.0, self.rates.slow_s)
        return self.chance.uniform(0.0005, 0.005)
