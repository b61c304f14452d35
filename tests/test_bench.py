"""The benchmarks run and say what they promise; how fast anything is, no test asserts."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from streams.__main__ import build_cli
from streams.bench import policy
from streams.bench.core import STEPS
from streams.bench.workload import Workload, by_partition


def run(*arguments: str) -> Any:
    done = CliRunner().invoke(build_cli("bench"), ["bench", *arguments, "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


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
