"""What producers and callers send: good, repeated, contradicting and broken records."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec

from streams import topics
from streams.following import entry_key
from streams.records import (
    ArmEntry,
    BudgetEntry,
    CatalogEntry,
    Decision,
    Outcome,
    PolicyEntry,
    PriceEntry,
    Request,
    Usage,
    decode,
    encode,
)
from tests.simulation.broker import Broker

DIMENSIONS = 2
PRICES = {"small": (100_000, 400_000), "large": (2_000_000, 8_000_000)}
BOUND_SMALL_NANOUSD = 50 * 100 + 100 * 400
"""What a usual request reserves at the small arm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """One seed's load."""

    roots: tuple[str, ...]
    policy: str
    window: str
    limit_nanousd: int
    requests: int
    seconds: float
    caller_s: float
    never: float
    repeated: float
    conflicting: float
    bad: float
    early: float
    overrun: float


def draw_shape(chance: random.Random, roots: tuple[str, ...]) -> Shape:
    """Draw a load: each of its troubles is absent in some seeds and frequent in others."""

    def share(high: float) -> float:
        return chance.choice([0.0, high / 4, high])

    return Shape(
        roots=roots,
        policy=chance.choice(["pareto", "cheapest", "greedy"]),
        window=chance.choice(["total", "total", "20s", "60s"]),
        limit_nanousd=BOUND_SMALL_NANOUSD * chance.choice([6, 25, 100, 10_000]),
        requests=chance.choice([20, 40, 80]),
        seconds=chance.choice([15.0, 30.0, 45.0]),
        caller_s=chance.choice([0.5, 3.0, 15.0]),
        never=share(0.3),
        repeated=share(0.2),
        conflicting=share(0.2),
        bad=share(0.2),
        early=share(0.2),
        overrun=share(0.1),
    )


def catalog_entries(shape: Shape) -> list[CatalogEntry]:
    """Return the catalog: the policy, two arms, and a tree of budgets for each root."""
    entries: list[CatalogEntry] = [
        PolicyEntry(policy=shape.policy, dimensions=DIMENSIONS, encoder="none")
    ]
    for arm, (price_in, price_out) in PRICES.items():
        entries.append(ArmEntry(arm=arm, explore=5))
        entries.append(PriceEntry(arm=arm, version=1, input=price_in, output=price_out))
    for root in shape.roots:
        for path, share in (("", 1.0), ("/t", 0.9), ("/t/a", 0.6), ("/t/b", 0.6)):
            limit = int(shape.limit_nanousd * share)
            entries.append(BudgetEntry(budget=root + path, limit_nanousd=limit,
                                       window=shape.window, pacing="none"))  # fmt: skip
    return entries


@dataclass(slots=True)
class Load:
    """The producers, and the callers who act on the first decision of each request."""

    broker: Broker
    shape: Shape
    chance: random.Random
    partition_of: dict[str, int]
    sent: dict[str, bytes] = field(default_factory=dict)
    root_of: dict[str, str] = field(default_factory=dict)
    pending: int = 0
    _met: set[str] = field(default_factory=set)
    _tasks: list[asyncio.Task[Any]] = field(default_factory=list)

    def declare(self) -> None:
        """Write the catalog."""
        for entry in catalog_entries(self.shape):
            self.broker.append(topics.CATALOG, 0, entry_key(entry), encode(entry))

    async def send_all(self) -> None:
        """Send the requests over their time, and change prices meanwhile."""
        shape, chance = self.shape, self.chance
        for number in range(shape.requests):
            await asyncio.sleep(chance.expovariate(shape.requests / shape.seconds))
            name, root = f"r{number}", chance.choice(shape.roots)
            request = Request(
                request_id=name, budget=f"{root}/t/{chance.choice('ab')}",
                input_tokens=50, max_output_tokens=chance.choice([20, 100, 100, 400]),
                features=[round(chance.uniform(-1, 1), 3) for _ in range(DIMENSIONS)],
                deadline_ms=self.broker.now_ms() + 5_000 if chance.random() < 0.05 else None,
            )  # fmt: skip
            if chance.random() < shape.early:
                self._report(root, name, Usage(prompt_tokens=50, completion_tokens=7), 0.25)
            self.sent[name] = encode(request)
            self.root_of[name] = root
            self._request(root, encode(request))
            if chance.random() < shape.repeated:
                self._later(partial(self._request, root, encode(request)))
            if chance.random() < shape.conflicting:
                request.input_tokens = 60
                self._later(partial(self._request, root, encode(request)))
            if chance.random() < shape.bad:
                self._send_bad(root)
            if chance.random() < 0.03:
                self._reprice(number + 2)

    def _request(self, root: str, value: bytes) -> None:
        self.broker.append(topics.REQUESTS, self.partition_of[root], root.encode(), value)

    def _send_bad(self, root: str) -> None:
        bad = self.chance.choice([b"\xff", b"{}", b'{"request_id":"bad"}', b""])
        topic = self.chance.choice([topics.REQUESTS, topics.OUTCOMES])
        self.broker.append(topic, self.partition_of[root], root.encode(), bad)

    def _reprice(self, version: int) -> None:
        arm = self.chance.choice(list(PRICES))
        price_in, price_out = (p * self.chance.choice([1, 2, 3]) for p in PRICES[arm])
        entry = PriceEntry(arm=arm, version=version, input=price_in, output=price_out)
        self.broker.append(topics.CATALOG, 0, entry_key(entry), encode(entry))

    async def call_all(self, root: str) -> None:
        """Read the decisions of one partition for ever and report what the calls cost."""
        partition, position = self.partition_of[root], 0
        while True:
            await self.broker.more(topics.DECISIONS, partition, position)
            end = len(self.broker.logs[topics.DECISIONS, partition])
            for record in self.broker.records(topics.DECISIONS, partition, position):
                decision = decode(Decision, record.value)
                if decision.decision_id not in self._met:
                    self._met.add(decision.decision_id)
                    if decision.arm is not None:
                        self._call(root, decision)
            position = end

    def _call(self, root: str, decision: Decision) -> None:
        shape, chance = self.shape, self.chance
        if chance.random() < shape.never:
            return
        used = chance.randint(0, decision.max_output_tokens)
        if chance.random() < shape.overrun:
            used = 3 * decision.max_output_tokens
        usage = Usage(prompt_tokens=decision.input_tokens, completion_tokens=used)
        name, reward = decision.request_id, round(chance.random(), 2)
        if chance.random() < 0.7:
            self._later(lambda: self._report(root, name, usage, reward))
        else:
            self._later(lambda: self._report(root, name, usage, None))
            self._later(lambda: self._report(root, name, None, reward))
        if chance.random() < shape.repeated:
            self._later(lambda: self._report(root, name, usage, reward))
        if chance.random() < shape.conflicting:
            other = msgspec.structs.replace(usage, completion_tokens=used + 1)
            self._later(lambda: self._report(root, name, other, reward))

    def _report(self, root: str, name: str, usage: Usage | None, reward: float | None) -> None:
        outcome = Outcome(request_id=name, usage=usage, reward=reward, latency_ms=5)
        self.broker.append(topics.OUTCOMES, self.partition_of[root], root.encode(), encode(outcome))

    def _later(self, act: Any) -> None:
        async def wait() -> None:
            await asyncio.sleep(self.chance.expovariate(1 / self.shape.caller_s))
            self.pending -= 1
            act()

        self.pending += 1
        self._tasks.append(asyncio.get_running_loop().create_task(wait()))
