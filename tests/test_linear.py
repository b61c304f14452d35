"""Online linear models: exact order, additive statistics, changes noticed."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.linear import Solution, Solver
from policy.moments import BLOCK, Moments
from policy.ridge import Centred, own_strength
from policy.terms import Floats

WIDTH = 5


def solve(matrices: Floats, *, prior: Floats, noise: float) -> Solution:
    return solver(noise).solve([list(matrices)], prior=prior[None])[0]


def solver(noise: float) -> Solver:
    return Solver(signals=[0.1], noises=[noise])


def shrinkage(matrices: Floats, slopes: Floats, *, expected: float, noise: float) -> float:
    return own_strength(Centred.of(matrices), slopes, expected=expected, noise=noise)


def add(moments: Moments, x: Floats, y: float, weight: float = 1.0) -> bool:
    return moments.add(x[None], np.array([y]), np.array([weight]))


def observe(moments: Moments, count: int, *, seed: int, level: float = 0.0) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(count):
        x = np.append(rng.normal(size=WIDTH - 1), 1.0)
        add(moments, x, float(level + 0.1 * x[0] + 0.1 * rng.normal()))


def new(forgetting: float = 0.9995) -> Moments:
    return Moments(WIDTH, forgetting=forgetting, noise=0.2)


def test_total_is_the_decayed_sum_of_products() -> None:
    rng = np.random.default_rng(3)
    moments = new(forgetting=0.9)
    rows = np.hstack([rng.normal(size=(45, WIDTH - 1)), np.ones((45, 1))])
    values = rng.normal(size=45)
    weights = rng.uniform(0.1, 1.0, size=45)
    for x, y, w in zip(rows, values, weights, strict=True):
        add(moments, x, float(y), float(w))
    z = np.hstack([rows, values[:, None]])
    expected = sum(
        w * 0.9 ** (44 - i) * np.outer(r, r)
        for i, (r, w) in enumerate(zip(z, weights, strict=True))
    )
    assert moments.total() == pytest.approx(expected)


@settings(deadline=None)
@given(first=st.integers(0, 200), second=st.integers(0, 80))
def test_restored_state_goes_on_bitwise_the_same(first: int, second: int) -> None:
    through = new()
    observe(through, first, seed=1)
    restored = new()
    assert restored.restore(through.vector()) == len(through.vector())
    for moments in (through, restored):
        observe(moments, second, seed=2)
    assert restored.vector().tobytes() == through.vector().tobytes()


@settings(deadline=None)
@given(cuts=st.lists(st.integers(0, 1_500), max_size=12), width=st.sampled_from([WIDTH, 27, 65]))
def test_how_observations_are_divided_changes_nothing(cuts: list[int], width: int) -> None:
    rng = np.random.default_rng(5)
    rows, values = rng.normal(size=(1_500, width)), rng.normal(size=1_500)
    values[750:] += 3.0  # An alarm in the middle of a block.
    weights = rng.uniform(0.1, 1.0, size=1_500)
    one, several = (Moments(width, forgetting=0.9995, noise=0.2) for _ in range(2))
    for start in range(0, 1_500, 7):
        part = slice(start, start + 7)
        one.add(rows[part], values[part], weights[part])
    for start, end in pairwise([0, *sorted(cuts), 1_500]):
        several.add(rows[start:end], values[start:end], weights[start:end])
    assert several.vector().tobytes() == one.vector().tobytes()


def test_a_batch_of_reads_in_between_changes_nothing() -> None:
    plain, read = new(), new()
    observe(plain, 90, seed=5)
    rng = np.random.default_rng(5)
    for _ in range(90):
        x = np.append(rng.normal(size=WIDTH - 1), 1.0)
        add(read, x, float(0.1 * x[0] + 0.1 * rng.normal()))
        read.total()
        read.vector()
    assert plain.vector().tobytes() == read.vector().tobytes()


@pytest.mark.parametrize("cut", [0, 3, 9, 30])
def test_a_state_of_another_shape_is_refused(cut: int) -> None:
    source = new()
    observe(source, 20, seed=1)
    with pytest.raises(ValueError, match="features"):
        new().restore(source.vector()[:cut])
    with pytest.raises(ValueError, match="features"):
        Moments(WIDTH + 1, forgetting=1.0, noise=0.2).restore(source.vector())


def test_solving_summed_moments_equals_solving_all_observations_together() -> None:
    whole, left, right = new(1.0), new(1.0), new(1.0)
    rng = np.random.default_rng(0)
    for i in range(64):
        x = np.append(rng.normal(size=WIDTH - 1), 1.0)
        y = float(rng.normal())
        add(whole, x, y)
        add(left if i % 2 else right, x, y)
    prior = np.zeros(1)
    one = solve(whole.total()[None], prior=prior, noise=0.2)
    two = solve((left.total() + right.total())[None], prior=prior, noise=0.2)
    assert two.theta == pytest.approx(one.theta)
    assert two.variance == pytest.approx(one.variance)


def test_estimates_approach_the_truth_and_the_deviation_shrinks() -> None:
    few, many = new(1.0), new(1.0)
    observe(few, 20, seed=7, level=0.5)
    observe(many, 4_000, seed=7, level=0.5)
    prior = np.zeros(2)
    found = solve(np.stack([few.total(), many.total()]), prior=prior, noise=0.2)
    assert found.theta[1] == pytest.approx([0.1, 0, 0, 0, 0.5], abs=0.01)
    assert np.sqrt(found.variance[1]) == pytest.approx(0.1, abs=0.01)
    probe = np.array([[1.0, 0, 0, 0, 1.0]])
    deviation = found.deviation(probe)[0]
    assert deviation[1] < deviation[0] / 3
    exact = np.sqrt(probe[0] @ found.inverses[:, 1] @ probe[0] * found.variance[1])
    assert deviation[1] == pytest.approx(exact)


@pytest.mark.parametrize("arms", [1, 31, 32, 100])
def test_deviations_are_those_of_the_quadratic_form_however_many_arms(arms: int) -> None:
    rng = np.random.default_rng(arms)
    roots = rng.normal(size=(arms, 5, 7))
    grams = roots @ roots.transpose(0, 2, 1)
    found = Solution(
        theta=rng.normal(size=(arms, 5)),
        inverses=np.ascontiguousarray(grams.transpose(1, 0, 2)),
        variance=rng.random(arms),
    )
    probes = rng.normal(size=(9, 5))
    exact = [[np.sqrt(x @ gram @ x) for gram in grams] for x in probes] * np.sqrt(found.variance)
    assert found.deviation(probes) == pytest.approx(exact)
    assert found.deviation(probes[:1]) == pytest.approx(exact[:1])


def test_an_arm_without_outcomes_takes_the_slopes_of_the_others() -> None:
    known = new(1.0)
    observe(known, 2_000, seed=1, level=0.5)
    stack = np.stack([known.total(), np.zeros_like(known.total())])
    found = solve(stack, prior=np.array([0.5, 0.8]), noise=0.2)
    assert found.theta[1, 0] == pytest.approx(0.1, abs=0.03)
    assert found.theta[1, -1] == pytest.approx(0.8, abs=0.02)


def test_no_observation_at_all_gives_the_prior() -> None:
    zeros = np.zeros((2, WIDTH + 1, WIDTH + 1))
    found = solve(zeros, prior=np.array([0.2, 0.7]), noise=0.3)
    assert found.theta[:, -1].tolist() == [0.2, 0.7]
    assert found.variance == pytest.approx(0.09)
    bias_only = solve(np.zeros((1, 2, 2)), prior=np.array([0.4]), noise=0.3)
    assert bias_only.theta.tolist() == [[0.4]]


def level_after(moments: Moments) -> float:
    found = solve(moments.total()[None], prior=np.zeros(1), noise=0.2)
    return float(found.theta[0, -1])


@pytest.mark.parametrize(
    ("before", "after", "dropped"),
    [
        pytest.param(0.9, 0.75, True, id="drop"),
        pytest.param(0.5, 0.7, False, id="rise"),
    ],
)
def test_a_sudden_change_of_level_is_followed_within_forty_observations(
    before: float, after: float, dropped: bool
) -> None:
    moments = new()
    observe(moments, 1_000, seed=1, level=before)
    observe(moments, 40, seed=2, level=after)
    assert level_after(moments) == pytest.approx(after, abs=0.05)
    assert moments.dropped is dropped
    assert moments.total()[-2, -2] < 80


def test_a_return_clears_the_mark() -> None:
    moments = new()
    observe(moments, 500, seed=1, level=0.9)
    observe(moments, 100, seed=2, level=0.6)
    assert moments.dropped
    observe(moments, 60, seed=3, level=0.9)
    assert not moments.dropped


def test_steady_noise_raises_no_alarm() -> None:
    moments = new()
    observe(moments, 20_000, seed=11, level=0.5)
    # An alarm would have cut the weight to twenty observations.
    assert moments.total()[-2, -2] > 1_900


def test_a_rare_failure_is_no_change() -> None:
    moments = new()
    rng = np.random.default_rng(4)
    for i in range(3_000):
        x = np.append(rng.normal(size=WIDTH - 1), 1.0)
        add(moments, x, 0.0 if i % 12 == 0 else 0.95)
    assert moments.total()[-2, -2] > 1_400


def test_blocks_grow_and_nothing_waits_longer_than_one() -> None:
    moments = new()
    folded = [add(moments, np.ones(WIDTH), 0.5) for _ in range(200)]
    assert all(folded[:15])
    gaps = np.diff(np.flatnonzero(folded))
    assert gaps.max() == BLOCK


def test_kept_inverses_change_nothing() -> None:
    rng = np.random.default_rng(2)
    arms = [new(), new(), new()]
    kept = solver(0.2)
    for step in range(300):
        x = np.append(rng.normal(size=WIDTH - 1) * (1 + step / 100), 1.0)
        add(arms[int(rng.integers(3))], x, float(rng.normal()))
        moments = [arm.matrix for arm in arms]
        found = kept.solve([moments], prior=np.zeros((1, 3)))[0]
        fresh = solver(0.2).solve([moments], prior=np.zeros((1, 3)))[0]
        assert found.theta.tobytes() == fresh.theta.tobytes()
        assert found.inverses.tobytes() == fresh.inverses.tobytes()


def stacked(slopes: list[float], count: int) -> Floats:
    """Return the moments of arms that differ in the slope of the first feature."""
    rng = np.random.default_rng(11)
    matrices = []
    for slope in slopes:
        x = np.column_stack([rng.normal(size=(count, 8)), np.ones(count)])
        y = 0.5 + slope * x[:, 0] + 0.2 * rng.normal(size=count)
        z = np.column_stack([x, y])
        matrices.append(z.T @ z)
    return np.stack(matrices)


def test_own_slopes_are_shrunk_as_much_as_arms_are_alike() -> None:
    shared = np.append(0.1, np.zeros(7))
    alike = shrinkage(stacked([0.1] * 6, 400), shared, expected=80.0, noise=0.2)
    unlike = shrinkage(
        stacked([0.5, -0.3, 0.4, -0.2, 0.3, -0.1], 400), shared, expected=80.0, noise=0.2
    )
    assert alike > 4 * 80.0
    assert unlike < 80.0 / 4
    assert shrinkage(stacked([0.1], 2), shared, expected=80.0, noise=0.2) == 80.0


def test_centring_is_exact() -> None:
    matrices, shared = stacked([0.4, 0.0], 60), np.append(0.2, np.zeros(7))
    moved = matrices.copy()
    for matrix in moved:
        # The same observations with every feature 3 higher and the value 7 higher.
        shift = np.eye(10)
        shift[:8, 8], shift[9, 8] = 3.0, 7.0
        matrix[:] = shift @ matrix @ shift.T
    found = [shrinkage(m, shared, expected=8.0, noise=0.2) for m in (matrices, moved)]
    assert found[0] == found[1]


@pytest.mark.parametrize("arms", [2, 3, 8])
def test_the_shrinkage_of_own_slopes_counts_what_the_shared_ones_took(arms: int) -> None:
    found, deviation, noise = [], 0.03, 0.25
    for seed in range(10):
        rng = np.random.default_rng([arms, seed])
        matrices = []
        for _ in range(arms):
            slopes = 0.02 + deviation * rng.normal(size=20)
            x = rng.normal(size=(1_000, 20))
            y = x @ slopes + noise * rng.normal(size=1_000)
            z = np.column_stack([x, np.ones(1_000), y])
            matrices.append(z.T @ z)
        stack = np.stack(matrices)
        total = stack.sum(axis=0)
        shared = np.linalg.solve(total[:20, :20] + 200.0 * np.eye(20), total[:20, -1])
        found.append(shrinkage(stack, shared, expected=200.0, noise=noise))
    # Taken as if the shared slopes were known: 2.9 times too much for two arms, twice for three.
    assert np.exp(np.mean(np.log(found))) == pytest.approx(noise**2 / deviation**2, rel=0.35)
