"""Calls that block, in threads of which never two run at once.

The loop stands still while such a thread runs, and the thread while the loop does; they change
only where the thread wants something of a server. So a seed gives the same every time, and the
product's own blocking code runs unchanged.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from tests.simulation.process import Process

T = TypeVar("T")
Wish = Callable[[], Awaitable[Any]]


class KilledError(BaseException):
    """The process of this thread was killed: no code of it runs any more but to unwind."""


class _Thread:
    """A thread that runs from one wish to the next."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.wish: Wish | None = None
        self.result: Any = None
        self.error: BaseException | None = None
        self.killed = False
        self._answer: tuple[Any, BaseException | None] = (None, None)
        self._call = call
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def resume(self, answer: Any = None, error: BaseException | None = None) -> Wish | None:
        """Let it run until it wants something (what is returned), or has ended."""
        self.wish, self._answer = None, (answer, error)
        self._go.release()
        self._back.acquire()
        if self.wish is None:
            self._thread.join()
        return self.wish

    def kill(self) -> None:
        """Let it unwind."""
        self.killed = True
        if self._thread.is_alive():
            self.resume(error=KilledError())

    def want(self, wish: Wish) -> Any:
        """Called in the thread: wait for an answer."""
        if self.killed:
            raise KilledError
        self.wish = wish
        self._back.release()
        self._go.acquire()
        answer, error = self._answer
        if error is not None:
            raise error
        return answer

    def _work(self) -> None:
        _current.thread = self
        self._go.acquire()
        try:
            if not self.killed:
                self.result = self._call()
        except BaseException as error:  # noqa: BLE001 - it is raised where the caller waits
            self.error = error
        self.wish = None
        self._back.release()


_current = threading.local()


def wait_for(wish: Wish) -> Any:
    """Wait, in a thread of :func:`run_blocking`, for something that the loop does."""
    thread: _Thread = _current.thread
    return thread.want(wish)


async def run_blocking(process: Process, call: Callable[[], T]) -> T:
    """Do as ``streams.ledger.threads.run_in_thread``: who waits may give up, the call goes on."""
    future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    future.add_done_callback(lambda f: f.cancelled() or f.exception())
    process.spawn(_drive(call, future))
    return await future


async def _drive(call: Callable[[], T], future: asyncio.Future[T]) -> None:
    thread = _Thread(call)
    try:
        wish = thread.resume()
        while wish is not None:
            try:
                answer, error = await wish(), None
            except Exception as caught:  # noqa: BLE001 - it is raised in the thread
                answer, error = None, caught
            wish = thread.resume(answer, error)
    except asyncio.CancelledError:
        thread.kill()
        raise
    if future.done():
        return
    if thread.error is not None:
        future.set_exception(thread.error)
    else:
        future.set_result(thread.result)
