"""One design under one seed: the nemesis' load, without tricks, and the nemesis' faults."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from streams.ledger.database import connection_string
from streams.topics import OUTCOMES, REQUESTS
from tests.comparison_parts.judge import BOOKED, LEDGER, Judgement, judge
from tests.nemesis_parts.campaign import servers_folder
from tests.nemesis_parts.cluster import Cluster
from tests.nemesis_parts.content import Content, Item, encode
from tests.nemesis_parts.faults import Nemesis
from tests.nemesis_parts.load import Load
from tests.nemesis_parts.oracle import OracleLog
from tests.nemesis_parts.plan import draw
from tests.nemesis_parts.world import World, make_world

START_S = 120.0
QUIET_S = 15.0
PATIENCE_S = 75.0
"""Without any decision or booking for so long, nothing more will come: where requests have no
answer yet, longer than it takes until the transaction of a producer that is gone times out."""
HEAL_S = 240.0
SPEND = "CREATE TABLE spend (request_id text, root text, amount_nanousd bigint)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """How a design is started; ``worker`` are the arguments of Python, empty for Tollway."""

    name: str
    worker: Sequence[str] = ()
    settings: Mapping[str, str] | None = None


_FAUST = ("-m", "tests.comparison_parts.stock_faust", "worker", "--without-web", "-l", "warn")
DESIGNS = (
    Design(name="tollway"),
    Design(name="faust-at-least-once", worker=_FAUST, settings={"GUARANTEE": "at_least_once"}),
    Design(name="faust-exactly-once", worker=_FAUST, settings={"GUARANTEE": "exactly_once"}),
    Design(name="gateway-queue", worker=("-m", "tests.comparison_parts.gateway")),
)


class PlainContent(Content):
    """Good requests, each sent once; each call answered once, with usage and reward."""

    def requests(self, number: int) -> Iterator[tuple[float, Item]]:
        """Yield the request."""
        yield next(
            (delay_s, item)
            for delay_s, item in super().requests(number)
            if item.topic == REQUESTS and item.kind == "good"
        )

    def outcomes(self, decision: Any) -> Iterator[tuple[float, Item]]:
        """Yield the report of the call, if there is one."""
        if decision.arm is None:
            return
        chance = random.Random(f"call {decision.request_id}")
        usage = {
            "prompt_tokens": decision.input_tokens,
            "completion_tokens": int(decision.max_output_tokens * chance.random() ** 2),
        }
        fields = {"request_id": decision.request_id, "usage": usage, "reward": 0.5}
        key = decision.budget.partition("/")[0].encode()
        yield chance.expovariate(2.0), Item(
            topic=OUTCOMES, key=key, value=encode(fields), kind="good",
            request_id=decision.request_id,
        )  # fmt: skip


def plain_world(seed: int, *, seconds: float, rate: float) -> World:
    """Return a world whose only limits are those of its roots, for the whole run."""
    world = make_world(seed, seconds=seconds, rate=rate)
    for root in world.roots:
        limit = world.budgets[root.name][0]
        for path in [p for p in world.budgets if p.partition("/")[0] == root.name]:
            world.budgets[path] = (limit, "total")
    return world


async def contest(
    design: Design, *, seed: int, seconds: float, rate: float, say: Callable[[str], None]
) -> Judgement:
    """Let one design stand one seed's faults, and judge it."""
    world = plain_world(seed, seconds=seconds, rate=rate)
    limits = {root.name: world.budgets[root.name][0] for root in world.roots}
    settings = {"LIMITS": json.dumps(limits), **(design.settings or {})}
    async with servers_folder() as folder:
        cluster = Cluster(
            folder, worker=design.worker, sinks=0 if design.worker else 2, settings=settings
        )
        try:
            await cluster.start(world.catalog())
            with psycopg.connect(connection_string(cluster.database_url)) as connection:
                connection.execute(SPEND)
            for slot in (*cluster.of("worker")[:2], *cluster.of("sink")):
                slot.want(True)
            faults = await _play(
                cluster, world, folder, seed=seed, seconds=seconds, rate=rate,
                booked=BOOKED if design.worker else LEDGER, say=say,
            )  # fmt: skip
            result = await judge(
                cluster.direct, cluster.database_url, world, first_counts=not design.worker
            )
            result.faults = faults
            return result
        finally:
            await cluster.close()


async def _play(
    cluster: Cluster, world: World, folder: Path, *, seed: int, seconds: float, rate: float,
    booked: str, say: Callable[[str], None],
) -> int:  # fmt: skip
    load = Load(
        PlainContent(world, seed), OracleLog(folder / "oracle.jsonl"), kafka=cluster.kafka("load"),
        direct=cluster.direct, rate=rate, careful=True,
    )  # fmt: skip
    await load.start()
    try:
        began = time.monotonic()
        while not load.decided_at and time.monotonic() < began + START_S:
            await asyncio.sleep(0.1)
        nemesis = Nemesis(cluster, load, draw(seed), measures=False)
        await nemesis.run(seconds)
        say(f"{nemesis.done.total()} faults done; healing")
        await _heal(cluster, load, booked)
        return nemesis.done.total()
    finally:
        await load.stop()


async def _heal(cluster: Cluster, load: Load, booked: str) -> None:
    """Start everything once more, and wait until it is done or nothing more comes of it."""
    workers = cluster.of("worker")
    for slot in workers:
        slot.want(False)
    cluster.heal()
    deadline = time.monotonic() + HEAL_S
    while any(slot.running for slot in workers) and time.monotonic() < deadline - HEAL_S + 30:
        await asyncio.sleep(0.1)
    for slot in workers[:2]:
        slot.kill()
        slot.want(True)
    began, before = time.monotonic(), (0, 0)
    while time.monotonic() < deadline:
        load.check()
        await asyncio.sleep(1.0)
        now = (sum(load.positions.values()), await _rows(cluster.database_url, booked))
        if now != before or not load.idle:
            began, before = time.monotonic(), now
        elif time.monotonic() - began > (PATIENCE_S if load.undecided else QUIET_S):
            return


async def _rows(database_url: str, statement: str) -> int:
    async with await psycopg.AsyncConnection.connect(connection_string(database_url)) as connection:
        return len(await (await connection.execute(statement)).fetchall())
