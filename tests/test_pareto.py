"""The bandit: learns, prices, explores within the budget, and is exact about its chances."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.money import NANO_PER_USD, Price, call_cost_nanousd
from policy.pareto import UNPRICED_SCORE, Pareto
from policy.registry import UnknownPolicyError, make_policy
from policy.terms import Arm, Bools, Contexts, Ints, Learning, Ranking, Settings

CHEAP = Price(version=1, input=100_000, output=100_000)
DEAR = Price(version=1, input=1_000_000, output=10_000_000)
DIMENSIONS = 3


def make(*arms: Arm, **options: float | int | str | bool) -> Pareto:
    policy = Pareto(Settings(dimensions=DIMENSIONS, options=options))
    policy.set_arms(arms or (arm("cheap", CHEAP), arm("dear", DEAR)))
    return policy


def arm(name: str, price: Price | None, explore: int = 0) -> Arm:
    return Arm(arm=name, price=price, explore=explore)


def contexts(count: int, *, seed: int = 0, max_output: int = 10_000) -> Contexts:
    rng = np.random.default_rng(seed)
    features = np.hstack([rng.normal(size=(count, DIMENSIONS)), np.ones((count, 1))])
    return Contexts(
        features=features,
        input_tokens=np.full(count, 100),
        max_output_tokens=np.full(count, max_output),
        seeds=rng.integers(0, 2**63, count).astype(np.uint64),
    )


def rank(policy: Pareto, where: Contexts, *, price: float = 0.0, width: int = 2) -> Ranking:
    return policy.rank(
        where,
        dual_price=np.full(len(where), price),
        eligible=np.ones((len(where), width), np.bool_),
    )


def teach(policy: Pareto, name: str, count: int, *, level: float, tokens: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for x in contexts(count, seed=seed).features:
        noisy = float(np.clip(level + 0.05 * x[0] + 0.1 * rng.normal(), 0, 1))
        drawn = int(tokens * np.exp(0.3 * x[1] + 0.4 * rng.normal() - 0.08))
        policy.learn(
            Learning(arm=name, features=x, input_tokens=100, age=1, reward=noisy,
                     output_tokens=drawn)
        )  # fmt: skip


@pytest.fixture
def taught() -> Pareto:
    policy = make()
    teach(policy, "cheap", 800, level=0.7, tokens=200, seed=1)
    teach(policy, "dear", 800, level=0.9, tokens=400, seed=2)
    return policy


def chosen(ranking: Ranking) -> Ints:
    return np.asarray(ranking.score.argmax(axis=1), np.int64)


def test_learns_reward_and_expected_dollars(taught: Pareto) -> None:
    where = contexts(500, seed=9)
    found = rank(taught, where)
    x = where.features
    assert found.reward[:, 0] == pytest.approx(0.7 + 0.05 * x[:, 0], abs=0.04)
    expected = (100 * 1_000_000 + 400 * np.exp(0.3 * x[:, 1]) * 10_000_000) / 1e12
    assert np.median(found.cost_usd[:, 1] / expected) == pytest.approx(1.0, abs=0.05)
    assert np.abs(np.log(found.cost_usd[:, 1] / expected)).max() < 0.3


def test_dual_price_decides_between_reward_and_dollars(taught: Pareto) -> None:
    where = contexts(200, seed=9)
    assert chosen(rank(taught, where)).mean() == 1.0
    assert chosen(rank(taught, where, price=1e5)).mean() == 0.0
    shares = [chosen(rank(taught, where, price=p)).mean() for p in (10.0, 40.0, 60.0, 200.0)]
    assert shares == sorted(shares, reverse=True)


def test_price_cut_acts_on_the_next_request(taught: Pareto) -> None:
    where = contexts(50, seed=9)
    before = rank(taught, where, price=1e3)
    taught.set_arms((arm("cheap", CHEAP), arm("dear", CHEAP)))
    after = rank(taught, where, price=1e3)
    assert chosen(before).mean() == 0.0
    assert chosen(after).mean() > 0.9
    assert after.cost_usd[:, 1].max() < before.cost_usd[:, 1].min()


def test_cost_alone_teaches_the_length_at_the_price_of_the_decision() -> None:
    by_tokens, by_cost = make(), make()
    rng = np.random.default_rng(0)
    for x in contexts(300, seed=1).features:
        tokens = int(rng.integers(50, 400))
        cost = call_cost_nanousd(DEAR, input_tokens=100, output_tokens=tokens)
        shared = {"arm": "cheap", "features": x, "input_tokens": 100, "age": 1}
        by_tokens.learn(Learning(**shared, output_tokens=tokens))
        by_cost.learn(Learning(**shared, cost_nanousd=cost, price=DEAR))
    where = contexts(20)
    one, two = rank(by_tokens, where).cost_usd, rank(by_cost, where).cost_usd
    assert two == pytest.approx(one, rel=1e-6)


def test_expected_output_never_exceeds_the_cap(taught: Pareto) -> None:
    capped = rank(taught, contexts(50, max_output=7))
    bound = call_cost_nanousd(DEAR, input_tokens=100, output_tokens=7) / NANO_PER_USD
    assert capped.cost_usd[:, 1] == pytest.approx(bound)


def test_arm_without_a_price_is_never_first() -> None:
    policy = make(arm("free", None, explore=50), arm("dear", DEAR), epsilon=0.3)
    found = rank(policy, contexts(300))
    assert chosen(found).min() == 1
    assert found.score[:, 0].max() == UNPRICED_SCORE
    assert found.cost_usd[:, 0].max() == 0.0
    assert found.propensity[:, 0].max() == 0.0


def test_a_new_arm_is_asked_as_often_as_it_says_and_no_more() -> None:
    policy = make(arm("cheap", CHEAP), arm("new", CHEAP, explore=20))
    teach(policy, "cheap", 400, level=0.95, tokens=100, seed=1)
    where = contexts(1_000, seed=3)
    first = rank(policy, where)
    assert first.explored.sum() == 20
    assert (chosen(first)[first.explored] == 1).all()
    assert 20 <= np.flatnonzero(first.explored)[-1] < 100
    for x in where.features[:20]:
        policy.decided("new", x, explored=True)
    assert not rank(policy, where).explored.any()


def test_a_new_arm_that_could_not_be_worth_its_price_is_not_asked() -> None:
    policy = make(arm("cheap", CHEAP), arm("new", DEAR, explore=20))
    teach(policy, "cheap", 400, level=0.8, tokens=100, seed=1)
    where = contexts(300, seed=3)
    assert rank(policy, where, price=0.0).explored.sum() == 20
    assert rank(policy, where, price=1e4).explored.sum() == 0


def test_an_arm_that_dropped_is_asked_now_and_then_until_it_recovers(taught: Pareto) -> None:
    where = contexts(2_000, seed=5)
    assert not rank(taught, where).explored.any()
    teach(taught, "dear", 60, level=0.5, tokens=400, seed=7)
    found = rank(taught, where)
    assert chosen(found)[~found.explored].mean() < 0.1
    assert 0.02 < found.explored.mean() < 0.06
    teach(taught, "dear", 80, level=0.9, tokens=400, seed=8)
    assert not rank(taught, where).explored.any()


@settings(max_examples=25)
@given(
    epsilon=st.sampled_from([0.0, 0.2]),
    algorithm=st.sampled_from(["ucb", "thompson"]),
    explore=st.sampled_from([0, 5, 10_000]),
    blocked=st.integers(0, 3),
)
def test_propensities_are_a_distribution_over_the_eligible(
    epsilon: float, algorithm: str, explore: int, blocked: int
) -> None:
    policy = make(
        arm("cheap", CHEAP, explore), arm("dear", DEAR, explore), arm("none", None),
        epsilon=epsilon, algorithm=algorithm,
    )  # fmt: skip
    where = contexts(40)
    eligible: Bools = np.ones((40, 3), np.bool_)
    eligible[::2, :blocked] = False
    found = policy.rank(where, dual_price=np.zeros(40), eligible=eligible)
    possible = (eligible & [True, True, False]).any(axis=1)
    assert found.propensity.sum(axis=1) == pytest.approx(possible.astype(float))
    assert found.propensity.min() >= 0.0
    assert (found.propensity[~eligible] == 0.0).all()
    first = np.where(eligible, found.score, -np.inf).argmax(axis=1)
    assert (found.propensity[possible, first[possible]] > 0.0).all()
    assert np.isfinite(found.score).all()


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"epsilon": 0.3}, id="epsilon"),
        pytest.param({"algorithm": "thompson", "alpha": 1.0}, id="thompson"),
        pytest.param({"algorithm": "thompson", "alpha": 1.0, "epsilon": 0.2}, id="both"),
    ],
)
def test_propensity_is_the_frequency_over_seeds(options: dict[str, float | str]) -> None:
    policy = make(arm("a", CHEAP), arm("b", CHEAP), arm("c", CHEAP), **options)
    teach(policy, "a", 12, level=0.7, tokens=100, seed=1)
    teach(policy, "b", 30, level=0.72, tokens=100, seed=2)
    teach(policy, "c", 6, level=0.66, tokens=100, seed=3)
    count = 20_000
    one = contexts(1, seed=4)
    same = Contexts(
        features=np.repeat(one.features, count, axis=0),
        input_tokens=np.full(count, 100),
        max_output_tokens=np.full(count, 1_000),
        seeds=np.arange(count, dtype=np.uint64),
    )
    found = rank(policy, same, width=3)
    frequency = np.bincount(chosen(found), minlength=3) / count
    assert found.propensity[0] == pytest.approx(frequency, abs=0.012)


def test_the_answer_does_not_depend_on_the_batch(taught: Pareto) -> None:
    where = contexts(64, seed=2)
    whole = rank(taught, where, price=50.0)
    for row in (0, 13, 63):
        part = Contexts(
            features=where.features[row : row + 1],
            input_tokens=where.input_tokens[row : row + 1],
            max_output_tokens=where.max_output_tokens[row : row + 1],
            seeds=where.seeds[row : row + 1],
        )
        alone = rank(taught, part, price=50.0)
        assert alone.score[0] == pytest.approx(whole.score[row], rel=1e-12)


def test_a_loaded_state_goes_on_bitwise_the_same(taught: Pareto) -> None:
    copy = make()
    for name in ("cheap", "dear"):
        copy.load(name, taught.dump(name))
    for policy in (taught, copy):
        teach(policy, "dear", 75, level=0.8, tokens=300, seed=11)
        policy.decided("dear", np.ones(4), explored=False)
    assert copy.dump("dear") == taught.dump("dear")
    where = contexts(30)
    assert rank(copy, where).score.tobytes() == rank(taught, where).score.tobytes()


def test_ranking_does_not_change_the_state(taught: Pareto) -> None:
    before = taught.dump("dear")
    rank(taught, contexts(10))
    assert taught.dump("dear") == before


@pytest.mark.parametrize("state", [b"", b"1234567", b"\0" * 8, b"\0" * 800])
def test_a_state_of_another_shape_is_refused(state: bytes) -> None:
    with pytest.raises(ValueError, match="state"):
        make().load("cheap", state)


def test_what_another_partition_learned_counts_once() -> None:
    alone, other = make(), make()
    teach(other, "dear", 300, level=0.9, tokens=100, seed=1)
    where = contexts(20)
    cold = rank(alone, where).reward[:, 1].mean()
    for _ in range(2):
        alone.merge("dear", 7, other.dump("dear"))
    merged = rank(alone, where)
    assert cold == pytest.approx(0.5, abs=0.01)
    assert merged.reward == pytest.approx(rank(other, where).reward, abs=0.02)
    assert alone.dump("dear") == make().dump("dear")


@pytest.mark.parametrize(
    "options",
    [
        {"alpah": 1.0},
        {"algorithm": "greedy"},
        {"epsilon": 1.5},
        {"forgetting": 0.0},
        {"epsilon": 0.8, "force": 0.3},
    ],
)
def test_a_wrong_option_is_refused(options: dict[str, float | str]) -> None:
    with pytest.raises(ValueError, match=r"pareto|must be|at most"):
        Pareto(Settings(options=options))


def test_features_of_another_width_are_refused(taught: Pareto) -> None:
    bad = contexts(3)
    with pytest.raises(ValueError, match="features"):
        taught.rank(
            Contexts(
                features=bad.features[:, :2],
                input_tokens=bad.input_tokens,
                max_output_tokens=bad.max_output_tokens,
                seeds=bad.seeds,
            ),
            dual_price=np.zeros(3),
            eligible=np.ones((3, 2), np.bool_),
        )


def test_registry_names_what_it_has() -> None:
    assert make_policy(Settings(policy="pareto")).name == "pareto"
    with pytest.raises(UnknownPolicyError, match="nothing"):
        make_policy(Settings(policy="nothing"))
