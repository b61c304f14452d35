"""Plays the schedule: sends the requests, answers the decisions as recorded, reports outcomes."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from streams.client import Client, Decisions
from streams.demo.budgets import PAYERS
from streams.demo.measures import Measures
from streams.demo.plan import ARMS, REPORTS, Schedule, Truth
from streams.demo.poison import Poison
from streams.records import Decision, Outcome, Request, Usage
from streams.replay.data import Recorded

TICK_S = 0.01
LATE_S = 1.5
"""A late report comes so long after its reservation has expired."""
_PREFIX = "demo-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call that was made: what was decided, what the model did."""

    arm: int
    at_s: float
    reward: float
    input_tokens: int
    output_tokens: int
    dropped: bool


@dataclass(order=True, slots=True)
class _Due:
    """A report that is due; ``ends`` when it is the call's answer."""

    at_s: float
    number: int
    budget: str
    outcome: Outcome
    arm: str
    ends: bool


class Player:
    """The producers of requests and the callers of models, all of them.

    Parameters
    ----------
    client, decisions
        Connected.
    clock_s : callable
        Seconds of the run.
    expire_s : float
        Life of a reservation, by which late reports are late.
    """

    def __init__(
        self, client: Client, decisions: Decisions, *, recorded: Recorded, schedule: Schedule,
        truth: Truth, measures: Measures, clock_s: Callable[[], float], expire_s: float,
    ) -> None:  # fmt: skip
        self._client, self._decisions = client, decisions
        self._features = recorded.features[:, :-1]
        self._schedule, self._truth, self._measures = schedule, truth, measures
        self._clock_s, self._expire_s = clock_s, expire_s
        self._due: list[_Due] = []
        self._columns = {arm: column for column, arm in enumerate(ARMS)}
        self.calls: dict[int, Call] = {}
        self.rejected: dict[int, str] = {}
        self.latest: dict[str, str] = {}
        self.dropped_arm: str | None = None
        self.poison: list[Poison] = []

    async def start(self) -> None:
        """Take the place in the decisions from which to read."""
        await self._decisions.start()

    async def stop(self) -> None:
        """Let :meth:`answer` end."""
        await self._decisions.stop()

    async def flush(self) -> None:
        """Return when everything that was sent is durable."""
        await self._client.flush()

    def request_id(self, number: int) -> str:
        """Return the id of a request of the schedule."""
        return f"{_PREFIX}{number:05d}"

    def request(self, number: int) -> Request:
        """Return a request of the schedule."""
        schedule = self._schedule
        return Request(
            request_id=self.request_id(number),
            budget=PAYERS[schedule.payer[number]].budget,
            input_tokens=int(self._truth.input_tokens[number]),
            max_output_tokens=int(schedule.output_cap[number]),
            features=np.round(self._features[schedule.prompt[number]], 6).tolist(),
        )

    async def send(self) -> None:
        """Send every request at its time, some of them twice."""
        at_s, again = self._schedule.at_s.tolist(), self._schedule.again.tolist()
        number = 0
        while number < len(at_s):
            now_s = self._clock_s()
            while number < len(at_s) and at_s[number] <= now_s:
                request = self.request(number)
                for _ in range(1 + again[number]):
                    await self._client.send(request)
                self._measures.on_sent(request.request_id, now_s)
                number += 1
            await asyncio.sleep(TICK_S)
        await self._client.flush()

    async def send_poison(self, poison: Poison) -> None:
        """Send a record that must become a dead letter."""
        self.poison.append(poison)
        self._measures.dead_letters_expected += 1
        await self._client.send_raw(poison.topic, poison.key, poison.value)

    async def answer(self) -> None:
        """Call the model of every effective decision, until cancelled."""
        async for batch in self._decisions.batches():
            now_s = self._clock_s()
            for decision, _ in batch:
                self.latest[decision.budget] = decision.request_id
                if decision.request_id.startswith(_PREFIX):
                    self._measures.on_decision(decision, now_s)
                    self._call(int(decision.request_id.removeprefix(_PREFIX)), decision, now_s)

    async def report(self) -> None:
        """Send every report at its time, until cancelled."""
        while True:
            now_s = self._clock_s()
            while self._due and self._due[0].at_s <= now_s:
                due = heapq.heappop(self._due)
                await self._client.report(due.budget, due.outcome)
                self._measures.on_outcome(due.arm, due.outcome.reward, now_s)
                if due.ends:
                    self._measures.on_call(False)
            await asyncio.sleep(TICK_S)

    @property
    def reports_due(self) -> int:
        """Return how many reports are still to come."""
        return len(self._due)

    def outcome(self, number: int) -> Outcome:
        """Return what a call that was made is reported as."""
        call = self.calls[number]
        return Outcome(
            request_id=self.request_id(number),
            usage=Usage(prompt_tokens=call.input_tokens, completion_tokens=call.output_tokens),
            reward=call.reward,
            latency_ms=round(1_000 * float(self._schedule.delay_s[number])),
        )

    def _call(self, number: int, decision: Decision, now_s: float) -> None:
        if decision.arm is None:
            self.rejected[number] = decision.rejected or ""
            return
        column, dropped = self._columns[decision.arm], decision.arm == self.dropped_arm
        tokens, reward = self._truth.answer(
            number, column, output_cap=decision.max_output_tokens, dropped=dropped,
            luck=float(self._schedule.luck[number]),
        )  # fmt: skip
        self.calls[number] = Call(
            arm=column,
            at_s=now_s,
            reward=reward,
            input_tokens=decision.input_tokens,
            output_tokens=tokens,
            dropped=dropped,
        )
        self._measures.on_call(True)
        self._plan_reports(number, decision, now_s)

    def _plan_reports(self, number: int, decision: Decision, now_s: float) -> None:
        schedule = self._schedule
        kind = REPORTS[schedule.report[number]]
        end_s = now_s + float(schedule.delay_s[number])
        whole = self.outcome(number)
        late_s = now_s + self._expire_s + LATE_S
        # Nothing late is begun that would hold up the end of the run.
        if kind == "late" and late_s > schedule.duration_s:
            kind = "whole"
        if kind == "apart":
            usage = Outcome(
                request_id=whole.request_id, usage=whole.usage, latency_ms=whole.latency_ms
            )
            reward = Outcome(request_id=whole.request_id, reward=whole.reward)
            self._push(end_s, decision, usage, ends=True)
            self._push(end_s + float(schedule.reward_delay_s[number]), decision, reward)
        elif kind == "never":
            # The call is over without a word; its reservation expires as spent.
            return self._measures.on_call(False)
        else:
            self._push(late_s if kind == "late" else end_s, decision, whole, ends=True)
            if kind == "twice":
                self._push(end_s + float(schedule.reward_delay_s[number]), decision, whole)
        return None

    def _push(
        self, at_s: float, decision: Decision, outcome: Outcome, *, ends: bool = False
    ) -> None:
        due = _Due(at_s, len(self.calls) * 2 + ends, decision.budget, outcome, decision.arm or "",
                   ends)  # fmt: skip
        heapq.heappush(self._due, due)
