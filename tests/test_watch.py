"""The watch for sudden changes: the same however it is fed, and alarmed when it should be."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.terms import Floats
from policy.watch import Alarm, Watch

WIDTH = 3
BLOCK = 8


def residuals(values: Floats) -> tuple[Floats, Floats]:
    """Return blocks whose residuals about an estimate of 0 are these values, and weights of 1."""
    blocks = np.zeros((len(values) // BLOCK, BLOCK, WIDTH + 1))
    blocks[..., -1] = values.reshape(-1, BLOCK)
    return blocks, np.ones(blocks.shape[:2])


def new() -> Watch:
    return Watch(WIDTH, noise=1.0)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_shift_by_one_deviation_is_seen_after_about_twenty(sign: float) -> None:
    alarm = new().follow(*residuals(np.full(40, sign)))
    # Each brings 1 less the drift of a half: 10 is exceeded by the twenty-first.
    assert alarm == Alarm(20, pytest.approx(sign))


def test_one_failure_counts_no_more_than_two_deviations() -> None:
    values = np.zeros(16)
    values[:6] = -1_000.0
    assert new().follow(*residuals(values)) is None
    values[6] = -1_000.0
    alarm = new().follow(*residuals(values))
    assert alarm is not None
    assert alarm.place == 6
    # How far the level moved is judged by all that was seen, unclipped.
    assert alarm.shift == pytest.approx(-1_000.0)


def test_an_alarm_ends_both_runs() -> None:
    watch = new()
    assert watch.follow(*residuals(np.full(24, 1.0))) is not None
    assert watch.vector() == new().vector()


@settings(deadline=None)
@given(
    cuts=st.lists(st.integers(0, 12), max_size=4),
    level=st.sampled_from([0.0, 0.3, 0.6]),
    seed=st.integers(0, 50),
)
def test_how_blocks_are_divided_changes_nothing(cuts: list[int], level: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    blocks = rng.normal(level, size=(12, BLOCK, WIDTH + 1))
    weights = rng.uniform(0.2, 1.0, size=(12, BLOCK))
    one, several = new(), new()
    whole = one.follow(blocks, weights)
    found = None
    for start, end in pairwise([0, *sorted(cuts), 12]):
        alarm = several.follow(blocks[start:end], weights[start:end])
        if alarm is not None:
            found = alarm._replace(place=alarm.place + start * BLOCK)
            break
    assert found == whole
    assert several.vector() == one.vector()


def test_residuals_are_of_the_estimate_in_units_of_its_deviation() -> None:
    rng = np.random.default_rng(0)
    rows = np.hstack([rng.normal(size=(400, WIDTH - 1)), np.ones((400, 1)), np.zeros((400, 1))])
    estimate = np.array([0.5, -0.2, 3.0])
    rows[:, -1] = rows[:, :-1] @ estimate + 0.1 * rng.normal(size=400)
    watch = new()
    watch.set_estimate(estimate, rows.T @ rows)
    assert watch.follow(rows.reshape(-1, BLOCK, WIDTH + 1), np.ones((50, BLOCK))) is None
    rows[:, -1] += 0.2
    alarm = watch.follow(rows.reshape(-1, BLOCK, WIDTH + 1), np.ones((50, BLOCK)))
    assert alarm is not None
    assert alarm.shift == pytest.approx(0.2, abs=0.1)


def test_restored_it_goes_on_as_before() -> None:
    rng = np.random.default_rng(3)
    blocks, weights = rng.normal(0.4, size=(2, BLOCK, WIDTH + 1)), np.ones((2, BLOCK))
    through, restored = new(), new()
    through.set_estimate(np.array([0.1, 0.2, 0.3]), np.eye(WIDTH + 1))
    through.follow(blocks, weights)
    vector = np.array(through.vector())
    assert len(vector) == Watch.size(WIDTH)
    restored.restore(vector)
    for watch in (through, restored):
        watch.follow(blocks, weights)
    assert restored.vector() == through.vector()
