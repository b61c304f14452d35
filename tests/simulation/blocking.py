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
    """A thread that runs from one wish to the next, and then waits for another call."""

    def __init__(self) -> None:
        self.result: Any = None
        self.error: BaseException | None = None
        self._call: Callable[[], Any] | None = None
        self._wish: Wish | None = None
        self._answer: tuple[Any, BaseException | None] = (None, None)
        self._killed = False
        # Locks as signals: a semaphore of ``threading`` takes ten times as long.
        self._go, self._back = threading.Lock(), threading.Lock()
        self._go.acquire()
        self._back.acquire()
        threading.Thread(target=self._work, daemon=True).start()

    def start(self, call: Callable[[], Any]) -> Wish | None:
        """Begin a call, see :meth:`resume`."""
        self.result, self.error, self._killed, self._call = None, None, False, call
        return self.resume()

    def resume(self, answer: Any = None, error: BaseException | None = None) -> Wish | None:
        """Let it run until it wants something (what is returned), or the call has ended."""
        self._wish, self._answer = None, (answer, error)
        self._go.release()
        self._back.acquire()
        return self._wish

    def kill(self) -> None:
        """Let the call unwind; nothing that it wants is done any more."""
        self._killed = True
        assert self.resume(error=KilledError()) is None

    def want(self, wish: Wish) -> Any:
        """Called in the thread: wait for an answer."""
        if self._killed:
            raise KilledError
        self._wish = wish
        self._back.release()
        self._go.acquire()
        answer, error = self._answer
        if error is not None:
            raise error
        return answer

    def _work(self) -> None:
        _current.thread = self
        while True:
            self._go.acquire()
            assert self._call is not None
            try:
                self.result = self._call()
            except BaseException as error:  # noqa: BLE001 - it is raised where the caller waits
                self.error = error
            self._wish = None
            self._back.release()


_idle: list[_Thread] = []
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
    thread = _idle.pop() if _idle else _Thread()
    try:
        wish = thread.start(call)
        while wish is not None:
            try:
                answer, error = await wish(), None
            except Exception as caught:  # noqa: BLE001 - it is raised in the thread
                answer, error = None, caught
            wish = thread.resume(answer, error)
    except asyncio.CancelledError:
        thread.kill()
        raise
    finally:
        result, failure = thread.result, thread.error
        _idle.append(thread)
    if future.done():
        return
    if failure is not None:
        future.set_exception(failure)
    else:
        future.set_result(result)
