"""Calls that block, such as the database's, beside the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def run_in_thread(call: Callable[[], T]) -> T:
    """Make the call in a thread of its own and wait for it.

    Unlike the event loop's own executor, which the end of the program waits for, a thread that a
    silent server holds up keeps nothing from ending. Ending there is safe: what it was about to
    commit is in doubt, and the next sink looks it up.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def finish(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def work() -> None:
        result, error = None, None
        try:
            result = call()
        except BaseException as caught:  # noqa: BLE001 - it is raised where the caller waits
            error = caught
        # The loop may have been closed while the call was held up.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(finish, result, error)

    threading.Thread(target=work, name="tollway-ledger", daemon=True).start()
    return await future
