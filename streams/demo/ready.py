"""Asks the workers of every root until all answer with the catalog that they should know."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator

from streams.client import Client, Decisions
from streams.demo.budgets import KNOCK, roots
from streams.demo.plan import FEATURES
from streams.records import Request

EVERY_S = 0.5


class Knocks:
    """Sends requests that no arm may answer: a decision for one says that its worker is there.

    They cost nothing and teach nothing; they also let the time of a partition's log go on when
    nothing else does.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._numbers: Iterator[int] = itertools.count()
        self.sent: list[str] = []
        self.last: dict[str, str] = {}

    async def send(self) -> None:
        """Send one to every root."""
        number = next(self._numbers)
        for root in roots():
            request = Request(
                request_id=f"{KNOCK}-{root}-{number}",
                budget=f"{root}/{KNOCK}",
                input_tokens=0,
                max_output_tokens=0,
                features=[0.0] * FEATURES,
                arms=[],
            )
            await self._client.send(request)
            self.sent.append(request.request_id)
            self.last[request.budget] = request.request_id
        await self._client.flush()

    async def answered(self, kafka: str, *, catalog: int, timeout_s: float) -> None:
        """Return when the worker of every root has decided with this catalog offset or a later.

        Raises
        ------
        TimeoutError
            If one did not in time.
        """
        decisions = Decisions(kafka)
        await decisions.start()
        seen: dict[str, int] = {}

        async def listen() -> None:
            async for batch in decisions.batches():
                for decision, _ in batch:
                    root = decision.budget.partition("/")[0]
                    seen[root] = max(seen.get(root, 0), decision.offsets.catalog)

        listening = asyncio.create_task(listen())
        try:
            async with asyncio.timeout(timeout_s):
                while min((seen.get(root, 0) for root in roots()), default=0) < catalog:
                    await self.send()
                    await asyncio.sleep(EVERY_S)
        finally:
            await decisions.stop()
            await listening
