"""Waiting for servers that are not there yet when a program starts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from aiokafka.errors import KafkaError

logger = logging.getLogger(__name__)

PAUSE_S = 0.2
PAUSE_MAX_S = 5.0


def is_kafka_away(error: Exception) -> bool:
    """Return whether Kafka is at fault, or the way to it."""
    return isinstance(error, KafkaError | TimeoutError)


async def until_there(
    call: Callable[[], Awaitable[object]],
    *,
    what: str,
    stop: asyncio.Event,
    is_away: Callable[[Exception], bool] = is_kafka_away,
) -> bool:
    """Make a call again and again until the server answers; return False if stopped before.

    Other errors than ``is_away`` says are raised. The call must be safe to repeat.
    """
    pause_s = PAUSE_S
    stopping = asyncio.ensure_future(stop.wait())
    try:
        while not stopping.done():
            attempt = asyncio.ensure_future(call())
            try:
                await asyncio.wait({attempt, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if attempt.done():
                    attempt.result()
                    return True
            except Exception as exc:
                if not is_away(exc):
                    raise
                reason = (str(exc) or repr(exc)).splitlines()[0]
                logger.warning("%s is away, trying again in %.1f s: %s", what, pause_s, reason)
                await asyncio.wait({stopping}, timeout=pause_s)
                pause_s = min(2 * pause_s, PAUSE_MAX_S)
            finally:
                attempt.cancel()
                await asyncio.gather(attempt, return_exceptions=True)
    finally:
        stopping.cancel()
    return False
