"""The benchmarks run and say what they promise; how fast anything is, no test asserts."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from streams.__main__ import build_cli
from streams.bench import growth, latency, pipeline, policy, recovery
from streams.bench.core import STEPS
from streams.bench.memory import bytes_per_thing
from streams.bench.plot import draw
from streams.bench.workload import Workload, by_partition
from streams.embedded import KafkaServer


def run(*arguments: str) -> Any:
    done = CliRunner().invoke(build_cli("bench"), ["bench", *arguments, "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def quiet(line: str) -> None:
    """Say nothing."""


def test_every_budget_of_a_request_is_declared_and_spread_over_the_partitions() -> None:
    workload = Workload(budgets=100, levels=3, partitions=4)
    budgets = workload.catalog().budgets
    assert {path.partition("/")[0] for path in workload.paths()} <= budgets.keys()
    assert all(len(workload.catalog().budget_path(path)) == 3 for path in workload.paths()[:3])
    divided = by_partition(workload.requests(200), 4)
    assert [len(divided[number]) for number in range(4)] == [50] * 4
    assert sum(map(len, divided.values())) == 200


def test_core_times_every_step() -> None:
    found = run("core", "--requests", "64", "--rounds", "2", "--chunk", "32", "--arms", "3")
    assert list(found["us_per_request"]) == [*STEPS, "all"]
    assert all(us["median"] > 0 for us in found["us_per_request"].values())
    assert found["decision_bytes"] > 400


def test_core_profile_names_functions() -> None:
    done = CliRunner().invoke(
        build_cli("bench"), ["bench", "core", "--requests", "32", "--profile", "tottime"]
    )
    assert "function calls" in done.stdout
    assert "decide.py" in done.stdout


def test_policy_compares_with_the_package_at_every_batch() -> None:
    found = run("policy", "--requests", "64", "--rounds", "1")
    names = {"tollway", "tollway_policy", "paretobandit"}
    assert set(found["us_per_request"]) == names
    assert set(found["us_per_request"]["tollway"]) == {str(batch) for batch in policy.BATCHES}
    assert found["ratios"]["paretobandit"] > 0


def test_policy_without_the_package_gives_no_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "make_package", lambda workload, rewards: None)
    found = run("policy", "--requests", "16", "--rounds", "1")
    assert found["ratios"] == {}
    assert "not installed" in found["missing"]


def test_growth_compares_the_ends_of_every_size() -> None:
    sizes = {"budgets": (2, 40), "arms": (3, 6), "partitions": (1, 2), "history": (0, 50)}
    found = growth.measure(requests=32, rounds=2, say=quiet, sizes=sizes, weighed=0, warm=64)
    assert found["ratios"].keys() >= {"budgets_2_to_40", "arms_3_to_6", "partitions_1_to_2"}
    assert set(found["us"]["arms"]) == {"3", "6"}
    assert "us a decision" in growth.show(found)


def test_things_have_weights() -> None:
    found = bytes_per_thing(count=1_024, features=8)
    # At least its row and its context of nine numbers; a budget holds sixteen and its name.
    assert 150 < found["open_reservation"] < 2_000
    assert 128 < found["idle_budget"] < 5_000
    assert found["arm"] > 2 * 8 * 9 * 9


def test_requests_are_due_once_they_were_sent_long_enough_ago() -> None:
    feed = recovery.Feed(producer=None, topic="t", workload=Workload(), rate=1)  # type: ignore[arg-type]
    assert feed.due() == 0
    now = time.monotonic()
    feed._history.extend([(now - 9, 50), (now - 8, 100), (now, 150)])
    assert feed.due() == 100


@pytest.fixture(scope="module")
def broker(servers_root: Path) -> Iterator[KafkaServer]:
    """Return a broker of the benchmarks: they create topics of their own number of partitions."""
    server = KafkaServer(servers_root / "kafka-bench")
    server.start()
    yield server
    server.stop()


SMALL = Workload(arms=3, features=4, budgets=8, partitions=2)


@pytest.mark.kafka
@pytest.mark.slow
async def test_benchmarks_with_a_broker(broker: KafkaServer, tmp_path: Path) -> None:
    kafka = broker.start()
    shape = pipeline.Shape(arms=3, features=4, budgets=8, partitions=2, requests=400, rounds=1)
    found = await pipeline.measure(
        kafka, tmp_path, shape, say=quiet, broker_pid=broker.pid, sink=False, others=["raw"]
    )
    assert found["ratios"].keys() == {"raw_echo", "raw_echo_settled"}
    assert all(found["per_s"][name]["median"] > 0 for name in ("decisions", "settled", "raw_echo"))
    assert "ratio raw_echo" in pipeline.show(found)
    draw(found, tmp_path / "rates.svg")
    assert "</svg>" in (tmp_path / "rates.svg").read_text()

    waits = await latency.measure(
        kafka,
        tmp_path,
        workload=SMALL,
        seconds=0.5,
        rounds=1,
        say=quiet,
        rates=[50],
        warm_up=100,
    )
    assert 0 < waits["latency_ms"]["decision"]["50"]["p50"]["median"] < 30_000
    assert waits["ratios"].keys() == {"p50_at_50", "p99_at_50", "p99.9_at_50"}


@pytest.mark.kafka
@pytest.mark.slow
async def test_recovery_with_a_broker_of_its_own(tmp_path: Path) -> None:
    server = KafkaServer(tmp_path / "kafka")
    kafka = server.start()
    try:
        seconds = await recovery.measure(
            kafka, tmp_path, size=200, rate=50, rounds=1, session_s=2, calm_s=0.5, say=quiet
        )
    finally:
        server.stop()
    assert seconds["worker"][0]["caught_up_s"] >= seconds["worker"][0]["first_s"] > 0
    assert seconds["echo"][0]["first_s"] > 0
