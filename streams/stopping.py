"""Ends aiokafka's consumers, which do not always end by themselves."""

from __future__ import annotations

import asyncio
from typing import Any


async def stop_consumer(consumer: Any) -> None:
    """Disconnect a consumer, whatever its fetches are doing; nothing happens a second time.

    Two faults of aiokafka's fetcher are worked around: it loses the cancellation that is to end
    it if that comes while it cancels a fetch of its own, as after a partition was read to its
    end; and a fetch that pauses after an error passes its own cancellation on to who stops it.
    """
    stopping = asyncio.ensure_future(consumer.stop())
    while not (await asyncio.wait([stopping], timeout=0.1))[0]:
        if consumer._fetcher is not None:
            consumer._fetcher._fetch_task.cancel()
    if stopping.cancelled():
        # All that was left to do.
        await consumer._client.close()
    else:
        stopping.result()
