"""The real core and shell under faults that no real server allows, from seeds."""

from __future__ import annotations

import os

import pytest

from tests.simulate import run_seeds
from tests.simulation.run import run_seed

SEEDS = 1_000


@pytest.mark.slow
def test_every_seed_keeps_the_laws() -> None:
    summary = run_seeds(range(SEEDS), jobs=min(os.cpu_count() or 1, 2))
    assert not summary.failed, "\n".join(f"seed {n}: {e}" for n, e in summary.failed.items())
    assert summary.ok
    assert summary.seeds == SEEDS
    # Seeds without faults would prove nothing.
    assert (
        min(summary.faults[fault] for fault in ("kill", "stop", "rebalance_now", "jump"))
        > SEEDS // 2
    )
    assert summary.fenced > SEEDS // 10
    assert min(summary.in_doubt, summary.fenced_sinks) > SEEDS // 10
    assert summary.records > 100 * SEEDS


@pytest.mark.parametrize("seed", [7, 41])
def test_a_seed_gives_the_same_records_again(seed: int) -> None:
    assert run_seed(seed).digest == run_seed(seed).digest
