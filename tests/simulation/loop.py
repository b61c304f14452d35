"""An event loop without sockets whose time is simulated: it jumps to the next timer."""

from __future__ import annotations

import asyncio
import heapq
from typing import Any

ROUNDS_MAX = 200_000
"""A seed takes some thousand rounds of callbacks."""


class DeadlockError(Exception):
    """Every task waits for another."""


class EndlessError(Exception):
    """Something goes on for ever."""


class SimLoop(asyncio.BaseEventLoop):
    """Runs callbacks in their order; when there are none, time goes on to the next timer.

    What is random is how long each simulated step takes, never the order of callbacks that are
    ready: code may rely on that order, and no real server could change it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._rounds = 0
        self._tasks: set[asyncio.Task[Any]] = set()

    def create_task(self, coro: Any, **more: Any) -> asyncio.Task[Any]:
        """Keep tasks until they are done, also those that wait for a process that has ended."""
        task = super().create_task(coro, **more)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def time(self) -> float:
        return self._now

    def _run_once(self) -> None:
        self._rounds += 1
        if self._rounds == ROUNDS_MAX:
            raise EndlessError(f"{ROUNDS_MAX} rounds, and it is {self._now:.0f} s")
        scheduled: list[Any] = self._scheduled  # type: ignore[attr-defined]
        ready = self._ready  # type: ignore[attr-defined]
        while scheduled and scheduled[0]._cancelled:
            heapq.heappop(scheduled)._scheduled = False
        if not ready and not self._stopping:  # type: ignore[attr-defined]
            if not scheduled:
                raise DeadlockError("nothing is ready and no timer is set")
            self._now = max(self._now, scheduled[0]._when)
        while scheduled and scheduled[0]._when <= self._now:
            handle = heapq.heappop(scheduled)
            handle._scheduled = False
            ready.append(handle)
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle._cancelled:
                handle._run()

    def _process_events(self, event_list: Any) -> None:
        """Nothing: there are no sockets."""

    def _write_to_self(self) -> None:
        """Nothing: no other thread wakes this loop."""
