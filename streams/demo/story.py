"""The story: what happens to the run, when, and what is said of it and its effect."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from policy.money import format_usd
from streams.demo.budgets import BURST_ROOT, roots
from streams.demo.measures import Measures
from streams.demo.plan import ARMS, PRICE_CUT, PRICE_CUT_ARM, Schedule, Times
from streams.demo.player import Player
from streams.demo.poison import bad_entry, bad_outcomes, bad_requests, contradictions
from streams.records import PriceEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """What an event changed: a measure of one thing before and after."""

    event: str
    what: str
    before: str
    after: str
    seen: bool


@dataclass(slots=True, kw_only=True, eq=False)
class Story:
    """Tells the story of one run.

    Parameters
    ----------
    declare : async callable
        Writes a catalog entry.
    kill : callable
        Kills a worker with -9 and returns its name and pid.
    base_price : PriceEntry
        Of the arm whose price is cut.
    """

    schedule: Schedule
    times: Times
    player: Player
    measures: Measures
    clock_s: Callable[[], float]
    declare: Callable[[PriceEntry], Awaitable[None]]
    kill: Callable[[], tuple[str, int]]
    base_price: PriceEntry
    say: Callable[[str], None]
    effects: list[Effect] = field(default_factory=list)
    cut_s: float = float("inf")
    drop_s: float = float("inf")
    kill_s: float = float("inf")
    back_s: float = float("inf")

    async def tell(self) -> None:
        """Let everything happen at its time; returns after the last effect was looked at."""
        async with asyncio.TaskGroup() as group:
            for chapter in (self._poison, self._cut, self._drop, self._kill, self._burst):
                group.create_task(chapter())

    async def _at(self, share: float) -> float:
        await asyncio.sleep(max(share * self.schedule.duration_s - self.clock_s(), 0.0))
        return self.clock_s()

    async def _poison(self) -> None:
        now_s = await self._at(0.10)
        good = self.player.request(0)
        records = [*bad_requests(good), *bad_outcomes(good.budget), bad_entry()]
        for poison in records:
            await self.player.send_poison(poison)
        self._tell(now_s, f"{len(records)} bad records sent: each must become a dead letter")
        await self._at(0.30)
        reported = next(n for n, call in self.player.calls.items() if call.at_s < now_s)
        request, outcome = self.player.request(reported), self.player.outcome(reported)
        for poison in contradictions(request, outcome):
            await self.player.send_poison(poison)

    async def _cut(self) -> None:
        now_s = await self._at(self.times.price_cut)
        before, arm, old = self.measures.share(PRICE_CUT_ARM, now_s), PRICE_CUT_ARM, self.base_price
        new = PriceEntry(
            arm=arm,
            version=old.version + 1,
            input=old.input // PRICE_CUT,
            output=old.output // PRICE_CUT,
        )
        await self.declare(new)
        self.cut_s = self.clock_s()
        self._tell(
            self.cut_s,
            f"price cut: {arm} now ${new.input / 1e6:g} in, ${new.output / 1e6:g} out "
            f"(was ${old.input / 1e6:g}, ${old.output / 1e6:g} per million tokens)",
        )
        now_s = await self._at((3 * self.times.drop + self.times.price_cut) / 4)
        self._effect("price cut", f"traffic of {arm}", before, self.measures.share(arm, now_s), 1)

    async def _drop(self) -> None:
        now_s = await self._at(self.times.drop)
        arm = self.measures.most_used(now_s)
        before = self.measures.share(arm, now_s)
        self.player.dropped_arm, self.drop_s = arm, now_s
        self._tell(now_s, f"silent quality drop: {arm} answers far worse from now on, unannounced")
        # Looked at before the burst, in which every dear arm loses traffic.
        now_s = await self._at(self.times.burst - 0.01)
        self._effect("quality drop", f"traffic of {arm}", before, self.measures.share(arm, now_s),
                     -1)  # fmt: skip

    async def _kill(self) -> None:
        now_s = await self._at(self.times.kill)
        name, pid = self.kill()
        self.kill_s = now_s
        self._tell(now_s, f"{name} (pid {pid}) killed with -9; it is started again")
        while any(self.measures.newest_decided_s(root) <= now_s for root in roots()):
            await asyncio.sleep(0.05)
        self.back_s = self.clock_s()
        self._tell(
            self.back_s,
            f"all its partitions are decided again, {self.back_s - now_s:.1f} s after the kill",
        )
        self.effects.append(
            Effect(
                event="kill -9",
                what="until all partitions were decided again",
                before="",
                after=f"{self.back_s - now_s:.1f} s",
                seen=True,
            )
        )

    async def _burst(self) -> None:
        now_s = await self._at(self.times.burst)
        before = self.measures.dual_price(BURST_ROOT)
        self._tell(
            now_s, f"burst: {BURST_ROOT} sends four times as much as its budget was made for"
        )
        highest = before
        end_s = self.times.burst_end * self.schedule.duration_s
        while self.clock_s() < end_s:
            highest = max(highest, self.measures.dual_price(BURST_ROOT))
            await asyncio.sleep(0.1)
        position = self.measures.position(BURST_ROOT)
        held = "" if position is None else (
            f"; {format_usd(position.settled_nanousd + position.reserved_nanousd)} of "
            f"{format_usd(position.limit_nanousd)} held"
        )  # fmt: skip
        self._tell(self.clock_s(), f"burst over: λ of {BURST_ROOT} rose to {highest:,.0f}{held}")
        self.effects.append(
            Effect(
                event="burst",
                what=f"λ of {BURST_ROOT}, reward per $",
                before=f"{before:,.0f}",
                after=f"{highest:,.0f}",
                seen=highest > before,
            )
        )

    def _effect(self, event: str, what: str, before: float, after: float, sign: int) -> None:
        self._tell(self.clock_s(), f"{event}: {what} {before:.0%} → {after:.0%}")
        self.effects.append(
            Effect(
                event=event,
                what=what,
                before=f"{before:.0%}",
                after=f"{after:.0%}",
                seen=sign * (after - before) > 0,
            )
        )

    def _tell(self, at_s: float, text: str) -> None:
        line = f"{at_s:5.1f} s  {text}"
        self.measures.story.append(line)
        self.say(line)


def price_entries(prices: Sequence[tuple[int, int]]) -> Sequence[PriceEntry]:
    """Return the first price of every arm, micro-dollars per million input and output tokens."""
    return [
        PriceEntry(arm=arm, version=1, input=price_in, output=price_out)
        for arm, (price_in, price_out) in zip(ARMS, prices, strict=True)
    ]
