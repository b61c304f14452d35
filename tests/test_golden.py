"""A replay and a worker, given the same records, decide the same."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from policy.decide import decide
from policy.money import TOKENS_MAX
from policy.registry import make_policy
from policy.state import Limits, State
from policy.terms import Settings
from streams import topics
from streams.client import Decisions
from streams.embedded import KafkaServer
from streams.intake import Intake
from streams.outgoing import decision_records
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
from streams.replay.data import Recorded, read
from streams.replay.run import request_id, run
from streams.replay.setup import BUDGET, Setup, Trace, at_ms, first_catalog
from streams.replay.world import Scenario, World, make_world
from streams.settling import settle_records
from tests.deployment import Deployment, Program

SEED = 3000
REQUESTS = 240
IN_FLIGHT = 7
ARMS = [5, 18, 19, 25, 26]
DATA = Path(__file__).parents[1] / "streams" / "data" / "zeroeval.npz"
GOLDEN = Path(__file__).parent / "golden" / "replay.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """A record as a consumer hands it over."""

    key: bytes
    value: bytes
    offset: int
    timestamp: int
    partition: int = 0


@pytest.fixture(scope="module")
def world() -> World:
    """Return recorded answers of five models to public benchmarks."""
    known = read(DATA)
    some = Recorded(
        models=tuple(known.models[arm] for arm in ARMS),
        features=known.features,
        reward=known.reward[:, ARMS],
        input_tokens=known.input_tokens,
        output_tokens=known.output_tokens[:, ARMS],
        prices=tuple(known.prices[arm] for arm in ARMS),
    )
    return make_world(some, Scenario(), seed=SEED, requests=REQUESTS)


class Worker:
    """What a worker does with the records of a partition, without Kafka."""

    def __init__(self, world: World, setup: Setup) -> None:
        self.catalog = first_catalog(world, setup)
        self.intake = Intake(catalog=self.catalog, encode=None)
        self.state = State(
            dimensions=self.catalog.settings.dimensions,
            make_policy=make_policy,
            catalog=self.catalog,
            limits=Limits(reservation_ttl_ms=10**12),
        )
        self.decisions: list[Decision] = []

    def on_request(self, request: Request, *, step: int) -> None:
        record = Read(
            key=BUDGET.encode(), value=encode(request), offset=step, timestamp=at_ms(step)
        )
        requests, refused = self.intake.requests([record])
        assert not refused
        decided = decide(self.state, requests, now_ms=record.timestamp)
        lines = decision_records(
            decided, policy="", features="", catalog=0, statistics=0, seed=0, ttl_ms=10**12
        )
        self.decisions += [decode(Decision, line) for line in lines]

    def on_outcome(self, outcome: Outcome, *, step: int) -> None:
        offset = self.state.gate.position.outcomes
        record = Read(
            key=BUDGET.encode(), value=encode(outcome), offset=offset, timestamp=at_ms(step)
        )
        (verdict,) = settle_records(self.state, self.intake, [record], 1)
        assert verdict.effect == "applied"


def by_worker(world: World, setup: Setup) -> list[Decision]:
    """Return the decisions on the same stream, its requests and outcomes as JSON records."""
    worker, recorded = Worker(world, setup), world.recorded
    for step, row in enumerate(world.order.tolist()):
        due = step - 1 - setup.in_flight
        if due >= 0:
            worker.on_outcome(outcome_of(world, due, str(worker.decisions[due].arm)), step=step)
        worker.on_request(request_of(recorded, row, step), step=step)
    return worker.decisions


def request_of(recorded: Recorded, row: int, step: int) -> Request:
    return Request(
        request_id=request_id(SEED, step),
        budget=BUDGET,
        input_tokens=int(recorded.input_tokens[row]),
        max_output_tokens=TOKENS_MAX,
        features=recorded.features[row, :-1].tolist(),
        segment=recorded.segments[row] if recorded.segments else "all",
    )


def outcome_of(world: World, step: int, arm: str) -> Outcome:
    """Return what the caller of the arm chosen at a step reports."""
    recorded, column = world.recorded, world.recorded.models.index(arm)
    usage = Usage(
        prompt_tokens=int(recorded.input_tokens[world.order[step]]),
        completion_tokens=int(recorded.output_tokens[world.order[step], column]),
    )
    reward = float(world.reward[step, column])
    return Outcome(request_id=request_id(SEED, step), usage=usage, reward=reward)


def setup_of(policy: str, options: dict[str, Any]) -> Setup:
    return Setup(
        settings=Settings(policy=policy, options=options),
        ceiling_nanousd=300_000,
        in_flight=IN_FLIGHT,
    )


@pytest.mark.parametrize(
    ("policy", "options"),
    [
        ("pareto", {}),
        ("pareto", {"algorithm": "thompson", "epsilon": 0.1}),
        ("pareto", {"floor": 0.7, "switching_cost": 0.02}),
        ("stageroute", {"inner": "pareto", "horizon": 240, "stages": 4, "arms_max": 3}),
        ("port", {}),
    ],
)
def test_replay_and_worker_decide_alike(world: World, policy: str, options: dict[str, Any]) -> None:
    assert_alike(world, setup_of(policy, options))


def test_segments_are_features_of_both(world: World) -> None:
    known = read(DATA, segments="task")
    plain = run(world, setup_of("pareto", {}), seed=SEED)
    told = replace(world.recorded, segments=known.segments, segment_names=known.segment_names)
    assert len(known.segment_names) == 3
    trace = assert_alike(replace(world, recorded=told), setup_of("pareto", {}))
    assert trace.arm.tolist() != plain.arm.tolist()


def assert_alike(world: World, setup: Setup) -> Trace:
    trace = run(world, setup, seed=SEED)
    decisions = by_worker(world, setup)
    assert [decision.arm for decision in decisions] == arms_of(world, trace)
    assert [decision.explored for decision in decisions] == trace.explored.tolist()
    prices = [decision.budgets[0].dual_price for decision in decisions]
    assert prices == trace.dual_price.tolist()
    assert len({decision.arm for decision in decisions}) > 1
    return trace


@pytest.fixture
def worker_alone(servers_root: Path) -> Iterator[Deployment]:
    """Return a broker of its own and a worker to be started on it; no ledger."""
    broker = KafkaServer(servers_root / "kafka-golden")
    result = Deployment(broker.start(), "postgresql://nowhere", servers_root / "golden", 1)
    result.folder.mkdir()
    try:
        yield result
    finally:
        result.close()
        broker.stop()


@pytest.mark.kafka
async def test_replay_and_worker_decide_alike_through_kafka(
    world: World, worker_alone: Deployment
) -> None:
    setup, count = setup_of("pareto", {"epsilon": 0.1}), 120
    trace, recorded, rig = run(world, setup, seed=SEED), world.recorded, worker_alone
    await topics.create(rig.kafka, app_id="tollway", partitions=1)
    await rig.declare(entries_of(world, setup))
    worker = rig.start_worker()
    await rig.ready(worker)
    reader = Decisions(rig.kafka, from_start=True)
    await reader.start()
    decisions: list[Decision] = []
    async with rig.client() as client, aclosing(reader.batches()) as fetched:
        for step, row in enumerate(world.order[:count].tolist()):
            due = step - 1 - IN_FLIGHT
            if due >= 0:
                outcome = outcome_of(world, due, str(decisions[due].arm))
                await (await client.report(BUDGET, outcome))
                await until_settled(rig, worker, due + 1)
            await (await client.send(request_of(recorded, row, step)))
            [(decision, _)] = await asyncio.wait_for(anext(fetched), timeout=60.0)
            decisions.append(decision)
    assert [decision.arm for decision in decisions] == arms_of(world, trace)[:count]
    assert [decision.explored for decision in decisions] == trace.explored[:count].tolist()
    prices = [decision.budgets[0].dual_price for decision in decisions]
    assert prices == trace.dual_price[:count].tolist()


async def until_settled(rig: Deployment, worker: Program, count: int) -> None:
    """Return when the worker has settled so many outcomes."""
    deadline = time.monotonic() + 60.0
    while worker.metric("tollway_outcomes_total", effect="applied") < count:
        rig.check()
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


def entries_of(world: World, setup: Setup) -> list[CatalogEntry]:
    """Return the catalog of a replay as entries of the topic."""
    catalog = first_catalog(world, setup)
    settings, budget = catalog.settings, catalog.budgets[BUDGET]
    entries: list[CatalogEntry] = [
        PolicyEntry(
            policy=settings.policy, dimensions=settings.given, encoder="none",
            options=settings.options,
        ),
        BudgetEntry(
            budget=BUDGET, limit_nanousd=budget.limit_nanousd, window=budget.window,
            per_request_nanousd=budget.per_request_nanousd,
        ),
    ]  # fmt: skip
    for arm in catalog.arms:
        assert arm.price is not None
        entries.append(ArmEntry(arm=arm.arm, explore=arm.explore))
        entries.append(
            PriceEntry(arm=arm.arm, version=1, input=arm.price.input, output=arm.price.output)
        )
    return entries


def test_the_same_records_are_decided_as_before(
    world: World, request: pytest.FixtureRequest
) -> None:
    """Explain every difference in the commit; ``--update-golden`` rewrites the file."""
    trace = run(world, setup_of("pareto", {}), seed=SEED)
    found = [
        {"request": request_id(SEED, step), "arm": arm, "explored": bool(explored)}
        for step, (arm, explored) in enumerate(
            zip(arms_of(world, trace), trace.explored, strict=True)
        )
    ]
    if request.config.getoption("--update-golden"):
        GOLDEN.write_text("".join(json.dumps(line) + "\n" for line in found))
    kept = [json.loads(line) for line in GOLDEN.read_text().splitlines()]
    assert found == kept


def test_a_request_draws_another_number_in_another_replay(world: World) -> None:
    setup = replace(setup_of("pareto", {"epsilon": 0.3}), in_flight=0)
    first, second = (run(world, setup, seed=seed) for seed in (SEED, SEED + 1))
    assert not np.array_equal(first.explored, second.explored)


def arms_of(world: World, trace: Trace) -> list[str | None]:
    return [world.recorded.models[arm] if arm >= 0 else None for arm in trace.arm.tolist()]
