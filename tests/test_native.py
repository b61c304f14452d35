"""The compiled loops: the same as what numpy computes, and built so that they are the same."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy import native, pace
from policy.linear import Solver
from policy.money import NANO_PER_USD
from policy.native import pointers
from policy.pace import PACER_DTYPE, charge, correct, hold, noise_sums
from policy.ridge import Centred, own_strength, plain_estimate
from policy.terms import Floats

FOLDER = Path(native.__file__).parent


def moments_of(rng: np.random.Generator, arms: int, features: int) -> Floats:
    """Return moments of arms whose features are neither centred nor independent."""
    turned = rng.normal(size=(features, features))
    found = []
    for arm in range(arms):
        count = int(rng.integers(0, 200))
        x = rng.normal(size=(count, features)) @ turned + rng.normal(size=features)
        y = 0.1 * x.sum(axis=1) + rng.normal(size=count) + arm
        z = np.column_stack([x, np.ones(count), y])
        found.append(z.T @ z)
    return np.stack(found)


def penalty(moments: Floats, signal: float) -> float:
    features = moments.shape[1] - 2
    weight, squares = moments[:, -2, -2].sum(), np.einsum("kii->", moments[:, :-2, :-2])
    if features == 0 or weight <= 0:
        return features / signal
    scale = max(squares / (features * weight), 1e-12)
    return features / signal * 2.0 ** (np.round(4.0 * np.log2(scale)) / 4.0)


@given(
    arms=st.integers(1, 6),
    # From 96 features on another library inverts.
    features=st.integers(0, 12) | st.sampled_from([95, 96, 130]),
    signal=st.sampled_from([0.1, 0.5]),
    seed=st.integers(0, 999),
)
@settings(deadline=None)
def test_all_arms_are_solved_as_by_linear_algebra(
    arms: int, features: int, signal: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    moments, prior, noise = moments_of(rng, arms, features), rng.random(arms), 0.3
    found = Solver(signals=[signal], noises=[noise]).solve([list(moments)], prior=prior[None])[0]
    weight, sums = moments[:, -2, -2], moments[:, -2, :-2]
    safe = np.maximum(weight, 1e-12)
    products = moments[:, :-2, :-2] - sums[:, :, None] * sums[:, None] / safe[:, None, None]
    crossed = moments[:, :-2, -1] - sums * (moments[:, -2, -1] / safe)[:, None]
    expected = penalty(moments, signal)
    shared = products.sum(axis=0) + expected * np.eye(features)
    slopes = np.linalg.solve(shared, crossed.sum(axis=0))
    own = own_strength(Centred.of(moments), slopes, expected=expected, noise=noise)
    level = sums.sum(axis=0) / max(weight.sum(), 1e-12) @ slopes
    ridge = np.append(np.full(features, own), 1.0)
    for arm in range(arms):
        base = np.append(slopes, prior[arm] - level)
        gram, moment = moments[arm, :-1, :-1] + np.diag(ridge), moments[arm, :-1, -1]
        theta = np.linalg.solve(gram, moment + ridge * base)
        z = np.append(-theta, 1.0)
        variance = (max(z @ moments[arm] @ z, 0.0) + 5 * noise**2) / (weight[arm] + 5)
        assert found.theta[arm] == pytest.approx(theta, rel=1e-6, abs=1e-8)
        assert found.inverses[:, arm] == pytest.approx(np.linalg.inv(gram), rel=1e-6, abs=1e-9)
        assert found.variance[arm] == pytest.approx(variance, rel=1e-5, abs=1e-8)


def test_a_plain_estimate_is_a_ridge_solution() -> None:
    moments = moments_of(np.random.default_rng(5), 1, 7)[0]
    ridge = np.append(np.full(7, penalty(moments[None], 0.1)), 1.0)
    mean = np.append(np.zeros(7), moments[-2, -1] / moments[-2, -2])
    exact = np.linalg.solve(moments[:-1, :-1] + np.diag(ridge), moments[:-1, -1] + mean)
    assert plain_estimate(moments, signal=0.1) == pytest.approx(exact)


@given(seed=st.integers(0, 999), before=st.integers(0, 3))
@settings(deadline=None)
def test_pacers_follow_as_their_formulas_say(seed: int, before: int) -> None:
    rng = np.random.default_rng(seed)
    dtype = np.dtype([(f"other{i}", "<i8") for i in range(before)] + PACER_DTYPE.descr)
    pacing = np.zeros(3, dtype)
    for i in range(before):
        pacing[f"other{i}"] = 7
    costs = rng.integers(0, 3, 20) * 1_000_000
    budget = rng.integers(0, 3, 20)
    hold(pacing, budget, costs)
    usd = costs / 1e9
    for index in range(3):
        mine = budget == index
        assert pacing["requests"][index] == mine.sum()
        assert pacing["spent_nanousd"][index] == costs[mine].sum()
        assert pacing["open_calls"][index] == (costs[mine] > 0).sum()
        assert pacing["open_usd2"][index] == pytest.approx((usd[mine] ** 2).sum())
    delta = rng.integers(-500_000, 500_000, 20)
    correct(pacing, budget, delta_nanousd=delta, expected_nanousd=costs)
    for index in range(3):
        mine, first = budget == index, (budget == index) & (costs > 0)
        assert pacing["spent_nanousd"][index] == costs[mine].sum() + delta[mine].sum()
        assert pacing["settled_calls"][index] == first.sum()
        assert pacing["settled_usd2"][index] == pytest.approx((delta[first] ** 2).sum() / 1e18)
        assert pacing["mean_usd"][index] == pytest.approx(delta[mine].sum() / 1e9 / 400)
        assert pacing["mean_fast_usd"][index] == pytest.approx(delta[mine].sum() / 1e9 / 20)
        assert pacing["open_calls"][index] == 0
    was, requests, cost = pacing.copy(), np.array([1, 4, 400]), np.array([5, 0, 7]) * 10**8
    price, planned = rng.random(3), rng.random(3)
    charge(pacing, requests=requests, cost_nanousd=cost, dual_price=price, planned_usd=planned,
           now_ms=1_000)  # fmt: skip
    fast, slow = 1 - 0.95**requests, 1 - (1 - 1 / 400) ** requests
    mean = cost / requests / 1e9
    assert pacing["total"].tolist() == requests.tolist()
    assert pacing["first_ms"].tolist() == pacing["seen_ms"].tolist() == [1_000] * 3
    assert pacing["dual_price"] == pytest.approx(fast * price)
    assert pacing["mean_usd"] == pytest.approx(was["mean_usd"] * (1 - slow) + slow * mean)
    assert pacing["planned_usd"] == pytest.approx(slow * planned)
    assert pacing["noise_usd2"] == pytest.approx(was["settled_usd2"])
    assert pacing["open_usd2"].tolist() == [0.0] * 3
    correct(pacing, budget, delta_nanousd=delta, expected_nanousd=costs)
    noise = noise_sums(pacing)
    charge(pacing, requests=requests, cost_nanousd=cost, dual_price=price, planned_usd=planned,
           now_ms=1_000 + 3_600_000)  # fmt: skip
    assert pacing["noise_usd2"] == pytest.approx(noise[0])
    assert pacing["noise_scale_usd2"] == pytest.approx(noise[1])
    assert pacing["count_slow"] == pytest.approx(requests * (1 + np.exp(-1)))
    assert pacing["count_fast"] == pytest.approx(requests * (1 + np.exp(-10)))
    for i in range(before):
        assert pacing[f"other{i}"].tolist() == [7] * 3


def test_the_record_of_a_pacer_is_laid_out_in_c_as_in_python() -> None:
    source = (FOLDER / "pace.c").read_text()
    body = source[source.index("typedef struct {") : source.index("} Pacing;")]
    fields = []
    for kind, names in re.findall(r"(ix|double) ([^;]+);", body):
        fields += [(name, "<i8" if kind == "ix" else "<f8") for name in names.split(", ")]
    assert fields == PACER_DTYPE.descr


def test_what_the_pacer_counts_with_is_the_same_in_c_and_in_python() -> None:
    source = (FOLDER / "pace.c").read_text()
    told = dict(re.findall(r"\b([A-Z_]+) = ([0-9.e/ ]+)[,;]", source))
    numbers = {
        name: float(one) / float(other or 1)
        for name, text in told.items()
        for one, _, other in [text.partition("/")]
    }
    assert numbers == {
        "NANO_PER_USD": NANO_PER_USD,
        "MEMORY_MS": pace.MEMORY_MS,
        "FAST": pace.FAST,
        "NOISE_KEEP": pace._NOISE_KEEP,
        "MEAN": pace.MEAN,
        "MEAN_FAST": 1 / 20,
    }


@pytest.mark.parametrize("index", [-1, 3])
def test_a_budget_that_is_not_there_is_refused_and_nothing_changed(index: int) -> None:
    pacing = np.zeros(3, PACER_DTYPE)
    budget, ones = np.array([0, index]), np.ones(2, np.int64)
    with pytest.raises(IndexError, match="of 3 budgets"):
        hold(pacing, budget, ones)
    assert pacing.tobytes() == bytes(pacing.nbytes)
    with pytest.raises(ValueError, match=r"shape \(2,\)"):
        hold(pacing, np.array([0, 1]), np.ones(1, np.int64))
    assert pacing.tobytes() == bytes(pacing.nbytes)


def test_arrays_that_c_cannot_take_are_refused() -> None:
    with pytest.raises((BufferError, TypeError, ValueError), match="contiguous"):
        pointers(np.zeros((4, 4))[:, 1])
    fixed = np.zeros(3)
    fixed.flags.writeable = False
    with pytest.raises((BufferError, TypeError, ValueError), match=r"writ|read-only"):
        pointers(fixed)


def test_a_library_that_is_missing_is_said_to_be(tmp_path: Path) -> None:
    # As in a checkout that was never installed.
    (tmp_path / "native").mkdir()
    shutil.copy(FOLDER / "__init__.py", tmp_path / "native" / "__init__.py")
    told = subprocess.run(
        [sys.executable, "-c", "import native"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert told.returncode == 1
    assert "ImportError" in told.stderr
    assert "kernels.so cannot be loaded" in told.stderr
    assert "python hatch_build.py" in told.stderr


@pytest.mark.slow
def test_what_is_loaded_is_what_the_sources_say(tmp_path: Path) -> None:
    # The build is the same to a byte wherever it is made.
    shutil.copy(Path(__file__).parents[1] / "hatch_build.py", tmp_path)
    (tmp_path / "policy").mkdir()
    shutil.copytree(FOLDER, tmp_path / "policy" / "native")
    made = tmp_path / "policy" / "native" / native.LIBRARY.name
    made.unlink()
    subprocess.run([sys.executable, "hatch_build.py"], cwd=tmp_path, check=True, timeout=300)
    assert made.read_bytes() == native.LIBRARY.read_bytes()
