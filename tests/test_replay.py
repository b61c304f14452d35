"""Replays: what a file must hold, what scenarios change, and what the command prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from policy.terms import Settings
from streams.commands import replay as command
from streams.replay import published
from streams.replay.data import DataError, Recorded, read
from streams.replay.job import Job, replay
from streams.replay.references import references
from streams.replay.run import run
from streams.replay.setup import Setup
from streams.replay.world import Scenario, make_world

MODELS = np.array(["small", "middle", "large"])
CEILING = 600_000


def arrays(count: int = 160, seed: int = 0) -> dict[str, Any]:
    """Return recorded data with costs of about 30,000, 500,000 and 5,000,000 nano-dollars."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(count, 4)).astype(np.float32)
    hard = 0.1 * features[:, :1]
    reward = np.clip(np.array([0.75, 0.9, 0.95]) - hard + rng.normal(0, 0.05, (count, 3)), 0, 1)
    long = np.exp(0.5 * features[:, 1:2] + rng.normal(0, 0.3, (count, 3)))
    return {
        "model": MODELS,
        "features": features,
        "reward": reward,
        "cost_usd": np.array([3e-5, 4e-4, 5e-3]) * long,
    }


def with_tokens(count: int = 60) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    return {
        "model": MODELS,
        "features": rng.normal(size=(count, 4)),
        "score": rng.integers(0, 2, (count, 3)).astype(np.uint8),
        "input_tokens": rng.integers(10, 90, count),
        "output_tokens": rng.integers(10, 900, (count, 3)),
        "price_in_microusd_per_mtok": np.array([100_000, 500_000, 2_500_000]),
        "price_out_microusd_per_mtok": np.array([100_000, 1_500_000, 10_000_000]),
        "release": np.array(["2023-01-01", "2024-06-01", "2024-02-01"], dtype=object),
    }


def save(path: Path, values: dict[str, Any]) -> Path:
    np.savez(path, **values)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return save(tmp_path / "data.npz", arrays())


@pytest.fixture
def recorded(data: Path) -> Recorded:
    return read(data)


def test_costs_without_tokens_are_kept_through_prices(data: Path, recorded: Recorded) -> None:
    with np.load(data) as file:
        cost = file["cost_usd"] * 1e9
    assert recorded.cost_nanousd() == pytest.approx(cost, rel=1e-3)
    assert recorded.features.shape == (160, 5)
    assert (recorded.features[:, -1] == 1.0).all()


def test_tokens_and_prices_and_pickled_dates_are_read(tmp_path: Path) -> None:
    values = with_tokens()
    found = read(save(tmp_path / "tokens.npz", values))
    thousandths = 10 * 0 + (
        values["input_tokens"][:, None] * values["price_in_microusd_per_mtok"]
        + values["output_tokens"] * values["price_out_microusd_per_mtok"]
    )
    assert (found.cost_nanousd() == -(-thousandths // 1_000)).all()
    assert found.release == ("2023-01-01", "2024-06-01", "2024-02-01")


class Evil:
    """An object whose pickle would run code."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (print, ("run",))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"reward": None}, "score is missing", id="no-reward"),
        pytest.param({"features": None}, "features is missing", id="no-features"),
        pytest.param({"cost_usd": None}, "cost_usd is missing", id="no-cost"),
        pytest.param({"reward": np.ones((160, 2))}, "shape", id="other-shape"),
        pytest.param({"reward": np.full((160, 3), 1.5)}, "in \\[0, 1\\]", id="above-one"),
        pytest.param({"reward": np.full((160, 3), np.nan)}, "not finite", id="nan"),
        pytest.param({"cost_usd": np.full((160, 3), -1.0)}, "negative", id="negative-cost"),
        pytest.param({"model": np.array(["a", "a", "b"])}, "distinct", id="same-name"),
        pytest.param(
            {"release": np.array([Evil()] * 3, dtype=object)}, "not allowed", id="code-in-pickle"
        ),
    ],
)
def test_a_bad_file_is_refused_with_the_reason(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    values = {name: v for name, v in (arrays() | change).items() if v is not None}
    with pytest.raises(DataError, match=message):
        read(save(tmp_path / "bad.npz", values))


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("text")
    with pytest.raises(DataError, match="not an npz"):
        read(tmp_path / "text.npz")


def setup(**more: Any) -> Setup:
    return Setup(settings=Settings(policy="pareto"), ceiling_nanousd=CEILING, **more)


def test_a_run_repeats_itself_and_a_seed_changes_it(recorded: Recorded) -> None:
    world = make_world(recorded, Scenario(), seed=3000)
    once, again = (run(world, setup(in_flight=5), seed=3000) for _ in range(2))
    assert (once.arm == again.arm).all()
    assert (once.dual_price == again.dual_price).all()
    other = run(make_world(recorded, Scenario(), seed=3001), setup(in_flight=5), seed=3001)
    assert (once.arm != other.arm).any()


@pytest.mark.parametrize("in_flight", [0, 20, 150])
def test_the_ceiling_holds_and_learning_pays(tmp_path: Path, in_flight: int) -> None:
    prior = read(save(tmp_path / "prior.npz", arrays(seed=5)))
    stream = read(save(tmp_path / "stream.npz", arrays(seed=6, count=300)))
    world = make_world(stream, Scenario(), seed=3000)
    trace = run(world, setup(in_flight=in_flight), seed=3000, prior=prior)
    assert trace.cost_nanousd.sum() <= CEILING * len(trace.arm)
    known = references(world, ceiling_nanousd=CEILING, seed=3000)
    assert trace.reward.mean() > known["best_fixed"].reward.mean() - 0.005
    assert trace.reward.mean() < known["oracle_in_budget"].reward.mean()
    assert (trace.arm >= 0).all()


def test_a_cold_start_keeps_to_the_ceiling_where_a_file_has_costs_alone(tmp_path: Path) -> None:
    stream = read(save(tmp_path / "stream.npz", arrays(seed=6, count=200)))
    assert stream.costs_only
    trace = run(make_world(stream, Scenario(), seed=3000), setup(), seed=3000)
    requests = np.arange(1, 201)
    assert (trace.cost_nanousd.cumsum() / (CEILING * (requests + 50))).max() <= 1.0
    assert (trace.arm == 2).sum() > 0


def test_references_are_ordered_as_they_must_be(recorded: Recorded) -> None:
    known = references(
        make_world(recorded, Scenario(), seed=3000), ceiling_nanousd=CEILING, seed=3000
    )
    reward = {name: trace.reward.mean() for name, trace in known.items()}
    assert reward["cheapest"] < reward["best_fixed"] < reward["oracle_in_budget"]
    assert reward["oracle_in_budget"] <= reward["oracle"]
    assert known["oracle_in_budget"].cost_nanousd.mean() <= CEILING
    assert reward["best_fixed"] <= reward["best_mix"] < reward["oracle_in_budget"]
    assert known["best_mix"].cost_nanousd.mean() <= CEILING * 1.001


def test_the_best_mix_gives_no_arm_more_than_its_capacity(recorded: Recorded) -> None:
    world = make_world(recorded, Scenario(kind="onboarding", arm="middle"), seed=3000)
    mixed = references(world, ceiling_nanousd=10**9, seed=3000, capacity=0.4)["best_mix"]
    before, after = world.phases[0], slice(world.phases[1].start, None)
    # Two arms of 0.4 cannot take every request: they take it all, evenly.
    assert shares(mixed.arm[before]) == pytest.approx([0.5, 0.0, 0.5], abs=0.03)
    assert shares(mixed.arm[after]) == pytest.approx([0.2, 0.4, 0.4], abs=0.03)


def shares(arms: Any) -> list[float]:
    return [float((arms == column).mean()) for column in range(3)]


def test_a_price_cut_changes_the_price_and_the_cost_of_one_arm_for_a_phase(
    recorded: Recorded,
) -> None:
    plain = make_world(recorded, Scenario(), seed=3000)
    world = make_world(recorded, Scenario(kind="price-cut", price_factor=0.1), seed=3000)
    first, second, third = world.phases
    assert recorded.models[world.subject or 0] == "large"
    ratio = world.cost_nanousd[second, 2] / plain.cost_nanousd[second, 2]
    assert ratio == pytest.approx(0.1, rel=1e-3)
    for phase in (first, third):
        assert (world.cost_nanousd[phase] == plain.cost_nanousd[phase]).all()
    assert set(world.prices) == {0, second.start, third.start}
    assert world.prices[third.start][2].version == 3


def test_a_regression_levels_the_best_arm_that_fits(recorded: Recorded) -> None:
    world = make_world(
        recorded, Scenario(kind="regression"), seed=3000, ceiling_nanousd=CEILING
    )  # fmt: skip
    assert world.subject == 1
    assert (world.reward[world.phases[1], 1] == 0.75).all()
    assert (world.reward[world.phases[0], 1] != 0.75).any()


def test_an_onboarded_arm_is_chosen_only_once_it_is_there(recorded: Recorded) -> None:
    scenario = Scenario(kind="onboarding", arm="middle")
    world = make_world(recorded, scenario, seed=3000)
    trace = run(world, setup(), seed=3000, prior=recorded)
    first, second = world.phases[:2]
    assert (trace.arm[first] != 1).all()
    assert (trace.arm[second] == 1).mean() > 0.3


def test_arms_arrive_by_release(tmp_path: Path) -> None:
    found = read(save(tmp_path / "tokens.npz", with_tokens()))
    world = make_world(found, Scenario(kind="stages", first=1), seed=3000, requests=90)
    arrival = [int(np.flatnonzero(world.available[:, arm])[0]) for arm in range(3)]
    assert arrival == [0, 60, 30]
    assert len(world.order) == 90


def test_unknown_arms_and_missing_dates_are_refused(recorded: Recorded) -> None:
    with pytest.raises(DataError, match="no arm"):
        make_world(recorded, Scenario(kind="regression", arm="other"), seed=1)
    with pytest.raises(DataError, match="release"):
        make_world(recorded, Scenario(kind="stages"), seed=1)


def test_scenarios_say_how_soon_the_policy_adapted(recorded: Recorded) -> None:
    job = Job(
        stream=recorded,
        prior=recorded,
        policies={"pareto": Settings(policy="pareto", dimensions=4)},
        setup=setup(),
        scenario=Scenario(kind="price-cut"),
        seeds=1,
        requests=600,
    )
    found = replay(job).policies["pareto"]
    assert len(found["phases"]) == 3
    assert found["phases"][1]["shares"]["large"] > 0.5 > found["phases"][0]["shares"]["large"]
    assert found["gain_share"] > 0.8
    assert found["phases"][2]["shares"]["large"] < 0.3


@pytest.fixture
def cli() -> typer.Typer:
    app = typer.Typer()
    app.callback()(lambda: None)
    command.register(app)
    return app


def test_json_has_policies_and_references_of_one_shape(cli: typer.Typer, data: Path) -> None:
    picture = data.with_suffix(".png")
    done = CliRunner().invoke(
        cli,
        ["replay", str(data), "--prior-share", "0.5", "--ceiling", "0.0006", "--seeds", "2",
         "--policy", "pareto", "--policy", "cheapest", "--set", "pareto:alpha=0.1",
         "--plot", str(picture), "--json"],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert set(found["policies"]) == {"pareto", "cheapest"}
    assert set(found["references"]) == {
        "cheapest", "best_fixed", "best_mix", "random", "oracle", "oracle_in_budget",
    }  # fmt: skip
    for summary in (*found["policies"].values(), *found["references"].values()):
        assert {"reward", "reward_sd", "cost_over_ceiling", "shares", "regret"} <= set(summary)
        assert sum(summary["shares"].values()) + summary["rejected"] == pytest.approx(1.0)
        assert set(summary["cost_over_ceiling"]) >= {"mean", "worst_seed", "worst_moment"}
    assert found["policies"]["pareto"]["cost_over_ceiling"]["worst_seed"] <= 1.0
    assert picture.stat().st_size > 10_000


def test_regret_is_measured_over_lengths(cli: typer.Typer, tmp_path: Path) -> None:
    data = save(tmp_path / "tokens.npz", with_tokens())
    arguments = ["replay", str(data), "--policy", "stageroute", "--policy", "random",
                 "--ceiling", "0.002", "--seeds", "1", "--regret-over", "40,160"]  # fmt: skip
    done = CliRunner().invoke(cli, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert sum(found["policies"]["random"]["shares"].values()) == pytest.approx(1.0)
    for name, growth in found["regret_over"].items():
        assert growth["requests"] == [40, 160]
        assert growth["regret_to_mix"][1] == found["policies"][name]["regret_to_mix"]
    shown = CliRunner().invoke(cli, arguments).stdout
    assert "exponent" in shown


def test_arm_budgets_are_compared(cli: typer.Typer, data: Path) -> None:
    done = CliRunner().invoke(
        cli,
        ["replay", str(data), "--prior-share", "0.5", "--arm-budgets", "uniform", "--seeds", "1",
         "--total", "0.02", "--json"],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["policies"]["port"]["reward"] > 0.0
    assert {"of_estimated", "of_true", "cost_usd"} <= set(found["policies"]["port"])
    assert set(found["references"]) == {"cheapest", "pooled"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policy", "none"], "unknown policy"),
        (["--set", "alpha"], "k=v"),
        (["--set", "alpah=1"], "no option"),
        (["--ceiling", "-1"], "not an amount"),
        (["--scenario", "flood"], "a scenario is"),
        (["--controller", "bang"], "a controller is"),
        (["--arm-budgets", "uniform"], "--prior"),
        (["--regret-over", "300,100"], "ascending"),
        (["--regret-over", "300,x"], "ascending"),
    ],
)
def test_a_wrong_argument_is_refused_with_the_reason(
    cli: typer.Typer, data: Path, arguments: list[str], message: str
) -> None:
    done = CliRunner().invoke(cli, ["replay", str(data), *arguments])
    assert done.exit_code == 2
    assert message in done.output


def test_the_published_package_is_refused_data_that_its_priors_are_not_for(
    cli: typer.Typer, data: Path
) -> None:
    done = CliRunner().invoke(cli, ["replay", str(data), "--ceiling", "0.001", "--published"])
    assert done.exit_code == 2
    assert "has priors for" in done.output
    known = tuple(published.USD_PER_MTOK)
    setup = Setup(settings=Settings(), ceiling_nanousd=CEILING)
    published.check_published(known, np.ones((2, 26)), setup)
    with pytest.raises(DataError, match="26 numbers"):
        published.check_published(known, np.ones((2, 5)), setup)
    with pytest.raises(DataError, match="--ceiling"):
        published.check_published(known, np.ones((2, 26)), Setup(settings=Settings()))


def test_a_budget_of_windows_is_kept_in_each_and_used(recorded: Recorded) -> None:
    setup = Setup(settings=Settings(), budget_nanousd=20_000_000, window="40s")
    assert setup.windows(100).tolist() == sorted(setup.windows(100).tolist())
    assert setup.mean_nanousd(80) == 20_000_000 * int(setup.windows(80).max() + 1) // 80
    job = Job(
        stream=recorded.rows(slice(60, None)), prior=recorded.rows(slice(0, 60)),
        policies={"pareto": Settings()}, setup=setup, scenario=Scenario(), seeds=2, requests=400,
    )  # fmt: skip
    found = replay(job)
    over = found.policies["pareto"]["cost_over_ceiling"]
    # A recorded answer may be longer than the cap that a decision near the end sets.
    assert over["worst_moment"] <= 1.02
    assert over["mean"] > 0.85
    assert found.references["best_fixed"]["cost_over_ceiling"]["mean"] <= 1.0


def test_shuffling_comes_before_the_split(cli: typer.Typer, tmp_path: Path) -> None:
    values = arrays(40)
    values["reward"] = np.repeat([[0.2] * 3, [0.8] * 3], 20, axis=0)
    data = save(tmp_path / "sorted.npz", values)
    rewards = []
    for extra in ([], ["--shuffle", "1"]):
        arguments = ["replay", str(data), "--prior-share", "0.5", "--policy", "cheapest",
                     "--seeds", "1", "--json", *extra]  # fmt: skip
        done = CliRunner().invoke(cli, arguments)
        rewards.append(json.loads(done.stdout)["policies"]["cheapest"]["reward"])
    assert rewards[0] == pytest.approx(0.8)
    assert 0.3 < rewards[1] < 0.7


def with_source(count: int = 400) -> dict[str, Any]:
    """Return data in which only the source says when the cheap arm is good enough."""
    values, rng = arrays(count), np.random.default_rng(5)
    easy = rng.random(count) < 0.5
    values["reward"][:, 0] = np.where(easy, 0.9, 0.3)
    values["source"] = np.where(easy, "easy", "bbh/hard").astype(object)
    return values


def test_where_a_request_is_from_is_a_feature(cli: typer.Typer, tmp_path: Path) -> None:
    data = save(tmp_path / "data.npz", with_source())
    rewards = []
    for extra in (["--segments", "source"], []):
        arguments = ["replay", str(data), "--prior-share", "0.5", "--ceiling", "0.00025",
                     "--seeds", "2", "--json", *extra]  # fmt: skip
        done = CliRunner().invoke(cli, arguments)
        assert done.exit_code == 0, done.output
        rewards.append(json.loads(done.stdout)["policies"]["pareto"]["reward"])
    assert rewards[0] > rewards[1] + 0.03


def test_the_weight_of_segments_is_the_length_of_the_features(tmp_path: Path) -> None:
    values = with_source()
    found = read(save(tmp_path / "data.npz", values), segments="source")
    length = np.sqrt((values["features"] ** 2).sum(axis=1).mean())
    assert found.segment_weight == pytest.approx(length, rel=0.05)
    part = found.rows(np.array([3, 1]))
    assert part.segments == (values["source"][3], values["source"][1])
    assert part.segment_names == ("bbh/hard", "easy")


def test_segments_are_there_and_not_too_many(tmp_path: Path) -> None:
    values = with_source() | {"source": np.arange(400).astype(str)}
    data = save(tmp_path / "data.npz", values)
    assert read(data).segment_names == ()
    with pytest.raises(DataError, match="400 segments"):
        read(data, segments="source")
    with pytest.raises(DataError, match="task is missing"):
        read(data, segments="task")
