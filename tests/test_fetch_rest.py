"""Fetches keep apart while agents work, and go on at once when they do not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from time import monotonic
from typing import Any

from streams.faust_batches.fetch_rest import FetchRest
from streams.faust_batches.thread import BatchConsumerThread

LONG_S = 30.0
"""Longer than any test: what waits for it hangs, what does not is done at once."""


def run(
    body: Callable[[FetchRest, list[bool]], Coroutine[Any, Any, None]], *, rest_s: float = LONG_S
) -> None:
    """Run with a rest, and a list whose last entry says whether agents are at work."""

    async def main() -> None:
        busy = [True]
        loop = asyncio.get_running_loop()
        await body(FetchRest(lambda: busy[-1], loop, rest_s=rest_s), busy)

    asyncio.run(main())


async def is_waiting(task: asyncio.Task[None]) -> bool:
    for _ in range(20):
        await asyncio.sleep(0)
    return not task.done()


def test_the_first_fetch_and_those_beside_idle_agents_are_sent_at_once() -> None:
    async def body(rest: FetchRest, busy: list[bool]) -> None:
        await rest.before_fetch()
        busy.append(False)
        for _ in range(3):
            assert not await is_waiting(asyncio.create_task(rest.before_fetch()))

    run(body)


def test_beside_an_agent_at_work_a_fetch_waits_until_it_is_idle() -> None:
    async def body(rest: FetchRest, busy: list[bool]) -> None:
        await rest.before_fetch()
        second = asyncio.create_task(rest.before_fetch())
        assert await is_waiting(second)
        busy.append(False)
        # As the main thread does.
        await asyncio.to_thread(rest.end)
        await second
        # What ended then does not end the next one.
        busy.append(True)
        third = asyncio.create_task(rest.before_fetch())
        assert await is_waiting(third)
        third.cancel()
        assert (await asyncio.gather(third, return_exceptions=True))[0] is not None
        # An end that nobody waits for is not kept for later either.
        rest.end()
        fourth = asyncio.create_task(rest.before_fetch())
        assert await is_waiting(fourth)
        fourth.cancel()

    run(body)


def test_an_agent_that_never_rests_does_not_keep_fetches_away() -> None:
    async def body(rest: FetchRest, _busy: list[bool]) -> None:
        begun = monotonic()
        for _ in range(4):
            await asyncio.wait_for(rest.before_fetch(), LONG_S)
        # Three of them rested; a slow machine only makes it longer.
        assert monotonic() - begun >= 3 * 0.02

    run(body, rest_s=0.02)


def test_a_fetch_that_is_cancelled_while_it_rests_brings_nothing() -> None:
    fetched: list[str] = []

    async def fetch(name: str) -> bool:
        fetched.append(name)
        return True

    async def body(rest: FetchRest, _busy: list[bool]) -> None:
        rested = BatchConsumerThread._rested(rest, fetch)
        assert await rested("first")
        second: asyncio.Task[bool] = asyncio.ensure_future(rested("second"))  # type: ignore[arg-type]
        await asyncio.sleep(0.01)
        second.cancel()
        assert await second is False
        assert fetched == ["first"]

    run(body)
