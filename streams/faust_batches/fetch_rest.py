"""While agents are at work, the next fetch may wait a little: more will come of it.

A fetch has its price under the interpreter's lock, and in the broker, however little it brings.
Sent as soon as the former is answered, fetches of busy topics bring a few records each, and whoever
decides waits for the lock at every one of them. What they bring has to wait for its agent anyway,
which is at work.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from time import monotonic

FETCH_REST_S = 0.025
"""So long after a fetch the next one is sent while agents are at work."""


class FetchRest:
    """Keeps fetches apart while agents are at work; belongs to the fetching thread's loop.

    Parameters
    ----------
    is_busy : callable
        Whether an agent is at work, or is about to be.
    loop : asyncio.AbstractEventLoop
        Of the fetching thread.
    rest_s : float
        How long after a fetch the next one may be kept back.
    """

    def __init__(
        self,
        is_busy: Callable[[], bool],
        loop: asyncio.AbstractEventLoop,
        *,
        rest_s: float = FETCH_REST_S,
    ) -> None:
        self._is_busy = is_busy
        self._loop = loop
        self._rest_s = rest_s
        self._over = asyncio.Event()
        self._is_resting = False
        self._sent_at = -math.inf

    async def before_fetch(self) -> None:
        """Return when a fetch may be sent: at once, unless agents are at work."""
        left_s = self._sent_at + self._rest_s - monotonic()
        if left_s > 0.0:
            self._over.clear()
            # Said before it is asked whether they work: what ends afterwards calls `end`.
            self._is_resting = True
            try:
                if self._is_busy():
                    await asyncio.wait_for(self._over.wait(), left_s)
            except TimeoutError:
                pass
            finally:
                self._is_resting = False
        self._sent_at = monotonic()

    def end(self) -> None:
        """Let a fetch that rests go on: no agent is at work now. Safe in the main thread."""
        if self._is_resting:
            self._loop.call_soon_threadsafe(self._over.set)
