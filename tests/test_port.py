"""PORT: prices that the program confirms, budgets of arms that hold, and a fair comparison."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as sized
from hypothesis import strategies as st

from policy.arm_budgets import METHODS, evaluate_arm_budgets, prepare
from policy.money import Price
from policy.oracle import outcome
from policy.port import Port, arm_prices
from policy.recorded import Growing, Recorded, estimate, split_budget
from policy.terms import Arm, Contexts, Learning, Settings

ARMS = (
    Arm(arm="small", price=Price(version=1, input=100_000, output=200_000), explore=0),
    Arm(arm="large", price=Price(version=1, input=1_000_000, output=2_000_000), explore=0),
)
CALL_USD = {"small": 4e-5, "large": 4e-4}


def port(**options):
    policy = Port(Settings(dimensions=2, options=options))
    policy.set_arms(ARMS)
    return policy


def contexts(count, seed=0):
    rng = np.random.default_rng(seed)
    return Contexts(
        features=np.hstack([rng.normal(size=(count, 2)), np.ones((count, 1))]),
        input_tokens=np.full(count, 200),
        max_output_tokens=np.full(count, 1_000),
        seeds=rng.integers(0, 2**63, count, dtype=np.uint64),
    )


def reward_of(arm, features):
    """Large is right; small only where the first feature is positive."""
    return 1.0 if arm == "large" or features[0] > 0 else 0.0


def teach(policy, arm, features):
    policy.learn(
        Learning(
            arm=arm,
            features=features,
            input_tokens=200,
            age=0,
            reward=reward_of(arm, features),
            cost_nanousd=round(CALL_USD[arm] * 1e9),
            output_tokens=100,
        )
    )


def run(policy, requests, *, seed=1, batch=32, price=0.0):
    """Route and learn at once; return the arms taken."""
    stream, taken = contexts(requests, seed), []
    for start in range(0, requests, batch):
        rows = slice(start, start + batch)
        part = Contexts(
            features=stream.features[rows],
            input_tokens=stream.input_tokens[rows],
            max_output_tokens=stream.max_output_tokens[rows],
            seeds=stream.seeds[rows],
        )
        ranking = policy.rank(
            part,
            dual_price=np.full(len(part), price),
            eligible=np.ones((len(part), 2), bool),
        )
        assert ranking.propensity.sum(axis=1) == pytest.approx(1.0)
        for row, column in enumerate(ranking.score.argmax(axis=1)):
            arm = ARMS[column].arm
            taken.append(arm)
            policy.decided(arm, part.features[row], explored=bool(ranking.explored[row]))
            teach(policy, arm, part.features[row])
    return stream, np.array(taken)


@sized(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), requests=st.integers(2, 20), arms=st.integers(1, 4))
def test_no_nearby_prices_have_a_lower_dual_value(seed, requests, arms):
    rng = np.random.default_rng(seed)
    reward, cost = rng.random((requests, arms)), rng.random((requests, arms)) * 1e-3
    budget = rng.random(arms) * cost.sum(axis=0)

    def dual(prices):
        return prices @ budget + np.maximum(reward - prices * cost, 0).max(axis=1).sum()

    prices = arm_prices(reward, cost, budget)
    assert (prices >= 0).all()
    for _ in range(20):
        other = np.maximum(prices * (1 + rng.normal(0, 0.2, arms)) + rng.normal(0, 20, arms), 0)
        assert dual(prices) <= dual(other) + 1e-6


def test_arms_without_a_budget_have_no_price():
    reward, cost = np.array([[0.5, 0.9]] * 4), np.array([[1.0, 2.0]] * 4)
    assert arm_prices(reward, cost, np.array([np.inf, np.inf])).tolist() == [0.0, 0.0]
    assert arm_prices(reward, cost, np.array([np.inf, 4.0])) == pytest.approx([0.0, 0.2])


def test_published_prices_stay_in_their_box():
    rng = np.random.default_rng(0)
    reward, cost = rng.random((50, 3)), rng.random((50, 3)) * 1e-5
    prices = arm_prices(reward, cost, cost.sum(axis=0) * 0.01, published=True)
    assert (prices <= 1.0 / 1e-4 + 1e-6).all()
    assert arm_prices(reward, cost, cost.sum(axis=0) * 0.01).max() > 1e4


def test_an_arms_budget_goes_where_it_gains_and_then_gives_way():
    budget = 200 * CALL_USD["large"]
    policy = port(horizon=1_000, **{"budget.large": budget})
    stream, taken = run(policy, 1_000)
    large = taken == "large"
    assert large.sum() * CALL_USD["large"] <= budget + 32 * CALL_USD["large"]
    assert large.sum() > 150
    later = np.arange(1_000) > 300
    # Small answers the requests with a positive feature, so large should be kept for the others.
    assert (stream.features[large & later, 0] < 0.2).mean() > 0.8


def test_without_budgets_the_pooled_price_alone_decides():
    policy = port()
    run(policy, 300)
    batch = contexts(100, seed=5)
    eligible = np.ones((100, 2), bool)
    free = policy.rank(batch, dual_price=np.zeros(100), eligible=eligible)
    dear = policy.rank(batch, dual_price=np.full(100, 1e6), eligible=eligible)
    assert (dear.score.argmax(axis=1) == 0).all()
    assert free.score == pytest.approx(free.reward)


def test_new_arms_are_tried_with_the_stated_probability():
    arms = (ARMS[0], Arm(arm="new", price=ARMS[1].price, explore=50, prior_reward=0.0))
    policy = Port(Settings(dimensions=2, options={"explore_share": 0.25}))
    policy.set_arms(arms)
    batch, eligible = contexts(4_000), np.ones((4_000, 2), bool)
    ranking = policy.rank(batch, dual_price=np.zeros(4_000), eligible=eligible)
    assert ranking.propensity[0] == pytest.approx([0.75, 0.25])
    assert (ranking.score.argmax(axis=1) == 1).mean() == pytest.approx(0.25, abs=0.03)
    assert ranking.explored.mean() == pytest.approx(0.25, abs=0.03)
    unaffordable = policy.rank(batch, dual_price=np.full(4_000, 1e5), eligible=eligible)
    assert not unaffordable.explored.any()


def test_a_restored_policy_goes_on_alike():
    options = {"horizon": 600, "resolve": 64, "budget.large": 0.02}
    policy, copy = port(**options), port(**options)
    run(policy, 320)
    for arm in ARMS:
        copy.load(arm.arm, policy.dump(arm.arm))
    assert (run(policy, 200, seed=3)[1] == run(copy, 200, seed=3)[1]).all()
    assert [policy.dump(a.arm) for a in ARMS] == [copy.dump(a.arm) for a in ARMS]


@pytest.mark.parametrize("state", [b"", bytes(64), bytes(64) + b"\xff" * 8, bytes(72) + b"x"])
def test_damaged_state_is_refused(state):
    with pytest.raises(ValueError):
        port().load("small", state)


def test_published_variant_explores_at_random_and_fits_once():
    policy = port(variant="published", horizon=2_000, **{"budget.large": 0.05, "budget.small": 0.1})
    _, taken = run(policy, 400, batch=1)
    assert 10 < (taken[:50] == "large").sum() < 40
    prices = dict(policy._prices)
    assert prices
    run(policy, 300, seed=4)
    assert policy._prices == prices


def synthetic(seed):
    """Arms of rising price and skill; features tell hard requests from easy ones."""
    rng = np.random.default_rng(seed)

    def recorded(count):
        features = rng.normal(size=(count, 4))
        skill = np.array([0.3, 0.5, 0.7, 0.9])
        chance = 1 / (1 + np.exp(-(features[:, :1] * 1.5 + 4 * (skill - 0.5))))
        reward = (rng.random((count, 4)) < chance).astype(float)
        cost = np.array([1.0, 4.0, 10.0, 40.0]) * 1e-5 * rng.lognormal(0, 0.4, (count, 1))
        return Recorded(features=features, reward=reward, cost_usd=cost)

    return recorded(500), recorded(700)


@pytest.fixture(scope="module")
def case():
    history, stream = synthetic(0)
    budget = split_budget(
        float(stream.cost_usd.sum(axis=0).min()),
        history.reward.mean(axis=0),
        history.cost_usd.mean(axis=0),
        split="weighted",
    )
    return prepare(history, stream, budget)


def test_no_method_spends_past_a_budget(case):
    for name, method in METHODS.items():
        choice = method(case)
        _, spent = outcome(case.stream.reward, case.stream.cost_usd, choice)
        if name in ("cheapest", "pooled"):
            assert spent.sum() <= case.budget_usd.sum() + 1e-12
            continue
        for arm in range(4):
            assert spent[choice == arm].sum() <= case.budget_usd[arm] + 1e-12


def test_port_is_above_what_it_is_compared_with(case):
    results = evaluate_arm_budgets(case)
    assert set(results) == set(METHODS)
    rivals = ("port-published", "port-exact-dual", "batch-split", "greedy-cost", "random")
    assert results["port"].reward >= max(results[name].reward for name in rivals)
    assert 0 < results["port"].of_true <= 1.0 + 1e-9
    assert results["port"].served <= len(case.stream)


def test_outcomes_of_the_stream_become_neighbours():
    history, stream = synthetic(1)
    known = Growing(history, stream.features)
    rows = np.arange(5)
    first, cost = known.estimate(rows, seen=5)
    expected = estimate(history, stream.features[:5])
    assert first == pytest.approx(expected[0], abs=0.41)
    assert np.abs(first - expected[0]).mean() < 0.02
    assert np.abs(cost / expected[1] - 1.0).mean() < 0.02
    for row in range(5, 60):
        known._vectors[len(history) + row] = known._vectors[len(history)]
        known.learn(row, 2, reward=0.125, cost_usd=7.0)
    later, cost = known.estimate(np.array([0]), seen=60)
    assert (later[0, 2], cost[0, 2]) == (0.125, 7.0)
    assert later[0, [0, 1, 3]] == pytest.approx(first[0, [0, 1, 3]])
    # Nothing is a neighbour of itself, nor known before it happened.
    assert known.estimate(np.array([5]), seen=6)[0][0, 2] == pytest.approx(first[0, 2])


@pytest.mark.parametrize("split", ["weighted", "cost", "uniform", "extreme"])
def test_split_keeps_the_total(split):
    budget = split_budget(10.0, np.array([0.2, 0.5, 0.9]), np.array([1.0, 5.0, 20.0]), split=split)
    assert budget.sum() == pytest.approx(10.0)
    assert (budget > 0).all()


def test_extreme_split_favours_the_least_efficient():
    reward, cost = np.array([0.2, 0.5, 0.9, 0.9]), np.array([1.0, 5.0, 20.0, 40.0])
    assert split_budget(1.0, reward, cost, split="extreme")[3] == pytest.approx(0.5)
    two = split_budget(1.0, reward, cost, split="extreme", worst=2)
    assert two[2:].sum() == pytest.approx(0.8)
    with pytest.raises(ValueError, match="worst"):
        split_budget(1.0, reward, cost, split="extreme", worst=4)
