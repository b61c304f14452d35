"""One run of the demo, from the first catalog entry to the last report."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from policy.terms import Ints
from streams import topics
from streams.client import Client, Decisions
from streams.demo import books
from streams.demo.budgets import budget_entries, knock_entries
from streams.demo.ends import DeadLetterCount, record_ends
from streams.demo.measures import Measures, Snapshot
from streams.demo.plan import (
    ARMS,
    FEATURES,
    MEAN_NANOUSD,
    PRICE_CUT_ARM,
    Scale,
    Schedule,
    Times,
    Truth,
    arms_of,
    first_window,
    make_schedule,
    make_truth,
    prior_rewards,
)
from streams.demo.player import Player
from streams.demo.ready import Knocks
from streams.demo.recorded import read_arrivals_s, read_zeroeval
from streams.demo.stage import DemoError, Stage
from streams.demo.story import Story, price_entries
from streams.records import ArmEntry, BudgetEntry, CatalogEntry, PolicyEntry
from streams.supervise import Supervisor

WORKERS = ("worker-1", "worker-2")
READY_S = 90.0
DRAIN_S = 45.0
LEAD_MS = 1_500
"""The first window begins no sooner than this after its budgets were declared."""
SEED = 2026
EXPLORE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Show:
    """What the audience gets: lines said as they happen, and a look every so often."""

    say: Callable[[str], None]
    look: Callable[[Snapshot], None]
    every_s: float


@dataclass(slots=True, kw_only=True, eq=False)
class Played:
    """A run that was played: all that the demo itself knows of it."""

    schedule: Schedule
    truth: Truth
    prices: Ints
    budgets: Sequence[BudgetEntry]
    run_nanousd: int
    player: Player
    measures: Measures
    story: Story
    knocks: Knocks
    decided_s: float


class Run:
    """Plays one run; ``clock_s`` is monotonic, ``clock_ms`` is the wall clock of the windows."""

    def __init__(
        self, stage: Stage, scale: Scale, show: Show, *, clock_s: Callable[[], float],
        clock_ms: Callable[[], int],
    ) -> None:  # fmt: skip
        self._stage, self._scale, self._show = stage, scale, show
        self._clock_s, self._clock_ms = clock_s, clock_ms
        self._recorded = read_zeroeval()
        self._prices = np.array(
            [(self._recorded.prices[c].input, self._recorded.prices[c].output)
             for c in arms_of(self._recorded)], np.int64
        )  # fmt: skip
        self._declared = 0
        self._origin_s = clock_s()

    def now_s(self) -> float:
        """Return the second of the run."""
        return self._clock_s() - self._origin_s

    async def play(self) -> Played:
        """Start the processes, play the schedule, wait until all is decided and booked, stop."""
        stage, scale = self._stage, self._scale
        settings = stage.settings(expire_s=scale.expire_s, defer_ms=scale.defer_ms)
        async with Client(stage.kafka) as client:
            await self._declare(client, self._first_entries())
            self._origin_s = self._clock_s()
            async with Supervisor(stage.home / "logs", settings) as supervisor:
                for name in WORKERS:
                    await supervisor.start(name, "worker")
                await supervisor.start("sink", "sink")
                knocks = Knocks(client)
                with _told("the workers did not answer", stage):
                    await knocks.answered(stage.kafka, catalog=self._declared, timeout_s=READY_S)
                self._show.say(f"two workers answer {self.now_s():.0f} s after their start")
                window_s, start_ms = first_window(self._clock_ms() + LEAD_MS, scale.window_s)
                budgets = budget_entries(
                    run_nanousd=MEAN_NANOUSD * scale.requests,
                    requests=scale.requests,
                    windows=scale.windows,
                    window_s=window_s,
                )
                await self._declare(client, budgets)
                with _told("the workers did not take up the budgets", stage):
                    await knocks.answered(stage.kafka, catalog=self._declared, timeout_s=READY_S)
                self._origin_s = self._clock_s() + (start_ms - self._clock_ms()) / 1_000
                played = self._cast(client, supervisor, knocks, budgets, window_s, start_ms)
                await self._perform(played, supervisor)
        return played

    def _first_entries(self) -> Sequence[CatalogEntry]:
        return [
            PolicyEntry(policy="pareto", dimensions=FEATURES, encoder="none", seed=SEED),
            *(
                ArmEntry(arm=arm, explore=EXPLORE, prior_reward=prior, prior_output_tokens=300)
                for arm, prior in zip(ARMS, prior_rewards(self._recorded), strict=True)
            ),
            *price_entries([(int(i), int(o)) for i, o in self._prices]),
            *knock_entries(),
        ]

    async def _declare(self, client: Client, entries: Sequence[CatalogEntry]) -> None:
        await client.declare(entries)
        self._declared += len(entries)

    def _cast(
        self, client: Client, supervisor: Supervisor, knocks: Knocks,
        budgets: Sequence[BudgetEntry], window_s: int, start_ms: int,
    ) -> Played:  # fmt: skip
        scale, times = self._scale, Times()
        schedule = make_schedule(
            self._recorded, read_arrivals_s(), scale=scale, window_s=window_s, times=times,
            seed=SEED,
        )  # fmt: skip
        truth = make_truth(self._recorded, schedule)
        measures = Measures(
            arms=ARMS,
            windows={entry.budget: entry.window for entry in budgets},
            duration_s=schedule.duration_s,
            epoch_ms=start_ms,
        )
        player = Player(
            client, Decisions(self._stage.kafka), recorded=self._recorded, schedule=schedule,
            truth=truth, measures=measures, clock_s=self.now_s, expire_s=scale.expire_s,
        )  # fmt: skip
        first = price_entries([(int(i), int(o)) for i, o in self._prices])
        story = Story(
            schedule=schedule,
            times=times,
            player=player,
            measures=measures,
            clock_s=self.now_s,
            declare=lambda entry: self._declare(client, [entry]),
            kill=lambda: (WORKERS[0], supervisor.kill(WORKERS[0])),
            base_price=first[ARMS.index(PRICE_CUT_ARM)],
            say=self._show.say,
        )
        return Played(
            schedule=schedule,
            truth=truth,
            prices=self._prices,
            budgets=budgets,
            run_nanousd=MEAN_NANOUSD * scale.requests,
            player=player,
            measures=measures,
            story=story,
            knocks=knocks,
            decided_s=0.0,
        )

    async def _perform(self, played: Played, supervisor: Supervisor) -> None:
        player, measures = played.player, played.measures
        await player.start()
        letters = DeadLetterCount(self._stage.kafka)
        await letters.start()
        background = (player.answer(), player.report(), self._watch(measures, supervisor, letters))
        try:
            async with _running(*background) as failed:
                await asyncio.sleep(max(-self.now_s(), 0.0))
                self._show.say(
                    f"{len(played.schedule):,} requests in {played.schedule.duration_s:.0f} s, "
                    f"which are {self._scale.windows} windows of the budgets"
                )
                await failed(self._tell(played))
                await failed(self._drain(played))
        finally:
            await letters.stop()
            await player.stop()

    async def _tell(self, played: Played) -> None:
        """Send the requests while the story happens."""
        with _told("the story did not end", self._stage):
            async with asyncio.timeout(played.schedule.duration_s + DRAIN_S):
                async with asyncio.TaskGroup() as group:
                    group.create_task(played.player.send())
                    group.create_task(played.story.tell())

    async def _watch(
        self, measures: Measures, supervisor: Supervisor, letters: DeadLetterCount
    ) -> None:
        looked_s = -1e9
        while True:
            supervisor.check()
            measures.ledger = await asyncio.to_thread(books.read_totals, self._stage.database_url)
            measures.dead_letters = await letters.read()
            for _ in range(4):
                now_s = self.now_s()
                if now_s >= 0.0:
                    snapshot = measures.snapshot(now_s)
                    if now_s - looked_s >= self._show.every_s:
                        looked_s = now_s
                        self._show.look(snapshot)
                await asyncio.sleep(0.25)

    async def _drain(self, played: Played) -> None:
        """Wait until every request is decided, every call reported, and the ledger has it all."""
        measures, player, knocks = played.measures, played.player, played.knocks
        with _told("not everything was decided and reported", self._stage):
            async with asyncio.timeout(DRAIN_S):
                while measures.waiting or player.reports_due or measures.in_flight:
                    # A request that waits for money is looked at again when a record comes.
                    await knocks.send()
                    await asyncio.sleep(0.3)
                played.decided_s = self.now_s()
                while any(player.latest.get(b) != last for b, last in knocks.last.items()):
                    await asyncio.sleep(0.05)
                await player.flush()
                wanted = await record_ends(self._stage.kafka, [topics.DECISIONS, topics.OUTCOMES])
                while True:
                    cursors = await asyncio.to_thread(books.read_cursors, self._stage.database_url)
                    if all(cursors.get(place, 0) >= end for place, end in wanted.items()):
                        return
                    await asyncio.sleep(0.1)


@contextlib.asynccontextmanager
async def _running(
    *work: Coroutine[Any, Any, None],
) -> AsyncIterator[Callable[[Coroutine[Any, Any, Any]], Any]]:
    """Run tasks beside the body; what it awaits through the given function ends if one fails."""
    tasks = [asyncio.create_task(coroutine) for coroutine in work]

    async def until_failed(awaited: Coroutine[Any, Any, Any]) -> Any:
        main = asyncio.create_task(awaited)
        try:
            await asyncio.wait([main, *tasks], return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
            return await main
        finally:
            main.cancel()

    try:
        yield until_failed
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.contextmanager
def _told(what: str, stage: Stage) -> Any:
    try:
        yield
    except TimeoutError:
        raise DemoError(f"{what} in time; see {stage.home / 'logs'}") from None
