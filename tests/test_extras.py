"""Options of the score: each does what it says, alone and through the core, and comes back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from policy.extra import Scored
from policy.extras import Extras
from policy.floor import TOP, QualityFloor
from policy.latency import LatencyWeight
from policy.money import Price
from policy.preferences import Preferences, bradley_terry
from policy.registry import make_policy
from policy.strong_share import StrongShare
from policy.switching import SwitchingCost
from policy.terms import Arm, Learning, Settings, SpansArms
from streams.replay.data import PSEUDO_TOKENS, Recorded
from streams.replay.run import run
from streams.replay.setup import Setup, Trace
from streams.replay.world import Scenario, make_world

ARMS = ("small", "middle", "large")


def scored(reward: Any, cost: Any = (1.0, 2.0, 9.0), count: int = 1) -> Scored:
    rows = np.broadcast_to(np.asarray(reward, float), (count, 3)).copy()
    return Scored(
        arms=ARMS,
        score=rows,
        reward=rows,
        cost_usd=np.broadcast_to(np.asarray(cost, float), (count, 3)).copy(),
        open_arms=np.ones((count, 3), np.bool_),
    )


def lesson(arm: str, **fields: Any) -> Learning:
    return Learning(arm=arm, features=np.ones(1), input_tokens=1, age=0, **fields)


def recorded(seed: int = 0, count: int = 700) -> Recorded:
    """Return arms that cost 1 : 10 : 100 and are the better the dearer, on the whole."""
    rng = np.random.default_rng(seed)
    hard = rng.normal(size=(count, 1))
    reward = np.array([0.7, 0.85, 0.9]) - np.array([0.1, 0.04, 0.02]) * hard
    features = np.hstack([hard, rng.normal(size=(count, 3)), np.ones((count, 1))])
    return Recorded(
        models=ARMS,
        features=features.astype(np.float32),
        reward=np.clip(reward + rng.normal(0, 0.03, (count, 3)), 0, 1),
        input_tokens=np.zeros(count, np.int64),
        output_tokens=np.rint(PSEUDO_TOKENS * np.exp(rng.normal(0, 0.3, (count, 3)))).astype(int),
        prices=tuple(Price(version=1, input=0, output=price) for price in (10, 100, 1_000)),
        latency_ms=np.tile([100, 2_000, 400], (count, 1)),
    )


def replayed(options: dict[str, Any], *, in_flight: int = 0) -> Trace:
    data = recorded()
    world = make_world(data.rows(slice(300, None)), Scenario(), seed=1)
    setup = Setup(settings=Settings(options=options), in_flight=in_flight)
    return run(world, setup, seed=1, prior=data.rows(slice(0, 300)))


def shares(trace: Trace, start: int = 0) -> list[float]:
    return [float((trace.arm[start:] == column).mean()) for column in range(3)]


def test_without_options_the_best_arm_is_the_dearest() -> None:
    assert shares(replayed({}))[2] > 0.8


def test_a_slow_arm_loses_its_weight_in_seconds() -> None:
    weight = LatencyWeight(0.1)
    for _ in range(5):
        weight.learned(lesson("small", latency_ms=500))
        weight.learned(lesson("middle", latency_ms=3_000))
    # An unknown arm counts as fast as the fastest.
    assert weight.adjust(scored([1.0, 1.0, 1.0]))[0] == pytest.approx([0.95, 0.7, 0.95])


def test_latency_is_traded_against_reward_in_a_replay() -> None:
    # 2 s of the middle arm cost 0.4 of reward, 0.4 s of the large one 0.08.
    found = shares(replayed({"latency_weight": 0.2, "floor": 0.0}))
    assert found[0] > 0.9
    slow = shares(replayed({"latency_weight": 0.2}))
    assert slow[2] > 0.5
    assert slow[1] < 0.1


def test_switching_keeps_to_the_arms_at_hand() -> None:
    option = SwitchingCost(0.3, resident=2)
    assert (option.adjust(scored([0.1, 0.2, 0.3])) == [[0.1, 0.2, 0.3]]).all()
    for arm in ("small", "middle", "small"):
        option.decided(arm)
    assert option.adjust(scored([0.5, 0.5, 0.6]))[0] == pytest.approx([0.5, 0.5, 0.3])
    free = replayed({"floor": 0.85})
    sticky = replayed({"switching_cost": 0.3, "floor": 0.0})
    changes = [int((np.diff(trace.arm) != 0).sum()) for trace in (free, sticky)]
    assert changes[1] < changes[0] / 4


def test_the_cheapest_arm_that_reaches_the_floor_comes_first() -> None:
    option = QualityFloor(0.8)
    found = option.adjust(scored([0.7, 0.85, 0.9]))[0]
    assert found.argmax() == 1
    assert found[1] == pytest.approx(TOP - 2.0 / 9.0)
    # Where none reaches it the best is the best.
    assert option.adjust(scored([0.7, 0.5, 0.3]))[0].argmax() == 0


@pytest.mark.parametrize("in_flight", [0, 50])
@pytest.mark.parametrize("floor", [0.75, 0.82])
def test_the_mean_reward_meets_the_floor_at_less_cost(floor: float, in_flight: int) -> None:
    trace = replayed({"floor": floor}, in_flight=in_flight)
    assert trace.reward[100:].mean() == pytest.approx(floor, abs=0.02)
    assert trace.cost_nanousd.mean() < replayed({}).cost_nanousd.mean() / 2


@pytest.mark.parametrize(("strong", "share"), [("large", 0.2), ("small", 0.3), ("large", 0.0)])
def test_the_strong_arm_gets_its_share_of_the_calls(strong: str, share: float) -> None:
    found = shares(replayed({"strong": strong, "strong_share": share}), start=150)
    assert found[ARMS.index(strong)] == pytest.approx(share, abs=0.05)


def test_a_batch_is_divided_as_single_requests_are() -> None:
    rng = np.random.default_rng(4)
    rewards = rng.normal(0.5, 0.1, (400, 3))
    whole, single = StrongShare("large", 0.25), StrongShare("large", 0.25)
    first = whole.adjust(replace(scored(0.0, count=400), score=rewards)).argmax(axis=1)
    chosen = []
    for row in rewards:
        chosen.append(int(single.adjust(replace(scored(0.0), score=row[None]))[0].argmax()))
        single.decided(ARMS[chosen[-1]])
    assert first.tolist() == chosen
    # Those that gain most, not just any.
    gain = rewards[:, 2] - rewards[:, :2].max(axis=1)
    assert gain[first == 2].mean() > gain[first != 2].mean() + 0.1


def test_ratings_of_pairs_are_those_of_the_model() -> None:
    true = np.array([1.0, 0.0, -1.0])
    chance = 1.0 / (1.0 + np.exp(true - true[:, None]))
    games = 10_000.0 * (1.0 - np.eye(3))
    rating = bradley_terry(games, games * chance)
    assert rating == pytest.approx(true, abs=0.01)


def test_points_against_a_weak_opponent_are_worth_less() -> None:
    option = Preferences()
    rng = np.random.default_rng(0)
    # "small" meets only the weak "middle", "large" only the strong "small".
    for arm, against, chance in (("small", "middle", 0.8), ("large", "small", 0.6)):
        for _ in range(500):
            points = float(rng.random() < chance)
            option.learned(lesson(arm, reward=points, against=against))
    shift = option.shift(ARMS)
    assert shift is not None
    raised = np.array([0.8, 0.5, 0.6]) + shift
    assert raised[2] > raised[0] > raised[1]
    option.learned(lesson("small", reward=1.0))
    assert (option.shift(ARMS) == shift).all()


def test_comparisons_alone_teach_which_arm_is_best() -> None:
    data = recorded()
    world = make_world(data, Scenario(), seed=1)
    setup = Setup(settings=Settings(options={"pairwise": True}))
    trace = run(world, setup, seed=1)
    assert shares(trace, start=300)[2] > 0.7


def test_what_is_kept_comes_back(subtests: pytest.Subtests) -> None:
    options = {
        "latency_weight": 0.1, "switching_cost": 0.1, "resident": 2, "floor": 0.5,
        "strong": "large", "strong_share": 0.3, "pairwise": True,
    }  # fmt: skip
    arms = tuple(Arm(arm=name, price=Price(version=1, input=1, output=1)) for name in ARMS)
    settings = Settings(dimensions=2, options=options)
    policy, other = make_policy(settings), make_policy(settings)
    rng = np.random.default_rng(1)
    for made in (policy, other):
        made.set_arms(arms)
    assert isinstance(policy, SpansArms)
    for _ in range(60):
        arm = ARMS[rng.integers(3)]
        features = np.append(rng.normal(size=2), 1.0)
        policy.decided(arm, features, explored=False)
        policy.learn(
            Learning(arm=arm, features=features, input_tokens=3, age=0, output_tokens=5,
                     reward=float(rng.random()), latency_ms=300, against=ARMS[rng.integers(3)])
        )  # fmt: skip
    for arm in ARMS:
        other.load(arm, policy.dump(arm))
    for arm in ARMS:
        with subtests.test(arm=arm):
            assert other.dump(arm) == policy.dump(arm)
    # Without the options what was learned is still read.
    plain = make_policy(Settings(dimensions=2))
    plain.set_arms(arms)
    plain.load("small", policy.dump("small"))
    assert not isinstance(plain, SpansArms)
    for broken in (b"\x05\x00\x00\x00abcde", b"\xff\xff\x00\x00", b""):
        with pytest.raises(ValueError, match=r"."):
            plain.load("small", broken)


@pytest.mark.parametrize(
    "options",
    [
        {"latency_weight": -1.0},
        {"switching_cost": float("nan")},
        {"switching_cost": 0.1, "resident": 0},
        {"floor": 1.5},
        {"strong": "large"},
        {"strong": "large", "strong_share": 2.0},
    ],
)
def test_a_value_out_of_range_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must be|belong"):
        Extras(options)
