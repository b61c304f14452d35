"""The simple policies: one contract for all, and the rule of each."""

import numpy as np
import pytest

from policy.baselines.base import COST_SUM, DECIDED
from policy.baselines.batch_split import BatchSplit
from policy.baselines.cheapest import Cheapest
from policy.baselines.fixed import Fixed
from policy.baselines.greedy import Greedy
from policy.baselines.knn_cost import KnnCost
from policy.baselines.knn_performance import KnnPerformance
from policy.baselines.mix import Mix
from policy.baselines.round_robin import RoundRobin
from policy.baselines.threshold import Threshold
from policy.baselines.uniform import Uniform
from policy.chance import uniforms
from policy.money import Price
from policy.neighbours import Neighbours
from policy.terms import Arm, Contexts, Learning, Settings, UnknownArmError

ALL = [
    BatchSplit, Cheapest, Fixed, Greedy, KnnCost, KnnPerformance, Mix, RoundRobin,
    Threshold, Uniform,
]  # fmt: skip
ARMS = (
    Arm(arm="small", price=Price(version=1, input=100_000, output=200_000)),
    Arm(arm="middle", price=Price(version=1, input=1_000_000, output=2_000_000)),
    Arm(arm="large", price=Price(version=1, input=10_000_000, output=20_000_000)),
)
MEAN_COST = np.array([4e-5, 4e-4, 4e-3])
"""Dollars of 200 tokens in and 100 tokens out."""


def settings(**options):
    return Settings(dimensions=3, options=options)


def ceiling_of(policy_type):
    return settings(**({"ceiling": 4e-4} if "ceiling" in policy_type.OPTIONS else {}))


def contexts(count, *, seed=0):
    rng = np.random.default_rng(seed)
    features = np.hstack([rng.normal(size=(count, 3)).round(2), np.ones((count, 1))])
    return Contexts(
        features=features,
        input_tokens=np.full(count, 200),
        max_output_tokens=np.full(count, 4_000),
        seeds=rng.integers(0, 2**63, count, dtype=np.uint64),
    )


def reward_of(arm, features):
    """Small does well where the first feature is positive; large always; middle halfway."""
    return {"small": float(features[0] > 0), "middle": 0.6, "large": 0.9}[arm]


def taught(policy, *, outcomes=60, seed=1):
    policy.set_arms(ARMS)
    past = contexts(outcomes, seed=seed)
    for index in range(outcomes):
        for arm, cost in zip(ARMS, MEAN_COST, strict=True):
            policy.decided(arm.arm, past.features[index], explored=False)
            policy.learn(
                Learning(
                    arm=arm.arm,
                    features=past.features[index],
                    input_tokens=200,
                    age=0,
                    reward=reward_of(arm.arm, past.features[index]),
                    cost_nanousd=round(cost * 1e9),
                    output_tokens=100,
                )
            )
    return policy


def rank(policy, batch, *, price=0.0, eligible=None):
    shape = (len(batch), len(ARMS))
    return policy.rank(
        batch,
        dual_price=np.full(len(batch), price),
        eligible=np.ones(shape, bool) if eligible is None else eligible,
    )


def shares(ranking):
    return np.bincount(ranking.score.argmax(axis=1), minlength=3) / len(ranking.score)


@pytest.fixture(params=ALL, ids=lambda policy: policy.name)
def policy_type(request):
    return request.param


def test_rank_is_pure_and_its_probabilities_sum_to_one(policy_type):
    policy = taught(policy_type(ceiling_of(policy_type)))
    batch = contexts(40, seed=7)
    eligible = np.random.default_rng(3).random((40, 3)) < 0.7
    before = [policy.dump(arm.arm) for arm in ARMS]
    first = rank(policy, batch, price=10.0, eligible=eligible)
    second = rank(policy, batch, price=10.0, eligible=eligible)
    assert (first.score == second.score).all()
    assert [policy.dump(arm.arm) for arm in ARMS] == before
    total = first.propensity.sum(axis=1)
    assert total == pytest.approx(np.where(eligible.any(axis=1), 1.0, 0.0))
    assert (first.propensity[~eligible] == 0).all()
    chosen = np.where(eligible, first.score, -np.inf).argmax(axis=1)
    assert (first.propensity[np.arange(40), chosen] > 0)[eligible.any(axis=1)].all()
    assert np.isfinite(first.score).all()
    assert ((first.reward >= 0) & (first.reward <= 1)).all()


def test_a_restored_policy_ranks_alike(policy_type):
    policy = taught(policy_type(ceiling_of(policy_type)))
    copy = policy_type(ceiling_of(policy_type))
    copy.set_arms(ARMS)
    for arm in ARMS:
        copy.load(arm.arm, policy.dump(arm.arm))
    batch = contexts(30, seed=8)
    assert (rank(copy, batch, price=5.0).score == rank(policy, batch, price=5.0).score).all()
    assert [copy.dump(a.arm) for a in ARMS] == [policy.dump(a.arm) for a in ARMS]
    with pytest.raises(ValueError):
        copy.load("small", b"1234")


@pytest.mark.parametrize("options", [{"celing": 1.0}, {"share": 2.0}, {"ceiling": float("nan")}])
def test_unknown_and_impossible_options_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Mix(settings(**options))


def test_an_empty_batch_and_an_untaught_policy(policy_type):
    policy = policy_type(settings())
    policy.set_arms(ARMS)
    assert rank(policy, contexts(0)).score.shape == (0, 3)
    assert np.isfinite(rank(policy, contexts(5)).score).all()


def test_expected_dollars_follow_a_price_cut_at_once(policy_type):
    policy = taught(policy_type(settings()))
    batch = contexts(10)
    before = rank(policy, batch).cost_usd
    cut = Arm(arm="large", price=Price(version=2, input=1_000_000, output=2_000_000))
    policy.set_arms((*ARMS[:2], cut))
    after = rank(policy, batch).cost_usd
    assert after[:, 2] == pytest.approx(before[:, 2] / 10)
    assert before.mean(axis=0) == pytest.approx(MEAN_COST, rel=0.05)


def test_what_other_partitions_learned_counts_once():
    policy, other = taught(Greedy(settings(epsilon=0.0))), taught(Greedy(settings()))
    for _ in range(2):
        policy.merge("small", 1, other.dump("small"))
    alone = taught(Greedy(settings()), outcomes=60)
    totals = policy._totals()
    assert totals[0] == pytest.approx(2 * alone._totals()[0])
    assert totals[1:] == pytest.approx(alone._totals()[1:])


def test_costs_alone_teach_dollars_too():
    policy = Cheapest(settings())
    policy.set_arms(ARMS)
    learning = Learning(
        arm="small", features=np.ones(4), input_tokens=0, age=0, cost_nanousd=9_000_000
    )
    policy.learn(learning)
    batch = contexts(3)
    assert rank(policy, batch).cost_usd[:, 0] == pytest.approx([0.009] * 3)
    assert rank(policy, batch).score.argmax(axis=1).tolist() == [1, 1, 1]


def test_cheapest_takes_the_cheapest():
    assert shares(rank(taught(Cheapest(settings())), contexts(50))).tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("options", "price", "expected"),
    [
        pytest.param({"arm": "middle"}, 0.0, [0, 1, 0], id="named"),
        pytest.param({"ceiling": 5e-4}, 0.0, [0, 1, 0], id="best-that-fits"),
        pytest.param({"ceiling": 1e-9}, 0.0, [1, 0, 0], id="none-fits-takes-cheapest"),
        pytest.param({}, 0.0, [0, 0, 1], id="free-money-takes-best"),
        pytest.param({}, 1e6, [1, 0, 0], id="dear-money-takes-cheapest"),
    ],
)
def test_fixed_arm(options, price, expected):
    assert shares(rank(taught(Fixed(settings(**options))), contexts(50), price=price)).tolist() == (
        expected
    )


def test_an_unknown_name_is_an_error():
    for policy in (Fixed(settings(arm="huge")), Mix(settings(strong="huge", weak="small"))):
        policy.set_arms(ARMS)
        with pytest.raises(UnknownArmError, match="huge"):
            rank(policy, contexts(1))


def test_random_takes_each_alike():
    ranking = rank(taught(Uniform(settings())), contexts(6_000))
    assert shares(ranking) == pytest.approx([1 / 3] * 3, abs=0.02)
    assert ranking.explored.all()


def test_round_robin_takes_turns_across_batches():
    policy = RoundRobin(settings())
    policy.set_arms(ARMS)
    taken = []
    for size in (1, 2, 4, 1):
        for column in rank(policy, contexts(size)).score.argmax(axis=1):
            taken.append(int(column))
            policy.decided(ARMS[column].arm, np.ones(4), explored=False)
    assert taken == [0, 1, 2, 0, 1, 2, 0, 1]


def test_mix_spends_the_ceiling_and_its_probabilities_are_true():
    policy = taught(Mix(settings(ceiling=1e-3)))
    ranking = rank(policy, contexts(6_000))
    spent = MEAN_COST[ranking.score.argmax(axis=1)].mean()
    assert spent == pytest.approx(1e-3, rel=0.05)
    assert shares(ranking) == pytest.approx(ranking.propensity[0], abs=0.02)


def test_mix_of_named_arms():
    policy = taught(Mix(settings(strong="large", weak="small", share=0.25)))
    assert shares(rank(policy, contexts(6_000))) == pytest.approx([0.75, 0, 0.25], abs=0.02)


def test_greedy_explores_a_known_share():
    ranking = rank(taught(Greedy(settings(epsilon=0.3))), contexts(6_000))
    assert shares(ranking) == pytest.approx([0.1, 0.1, 0.8], abs=0.02)
    assert ranking.propensity[0] == pytest.approx([0.1, 0.1, 0.8])
    assert ranking.explored.mean() == pytest.approx(0.3, abs=0.02)


def test_knn_performance_tells_requests_apart():
    policy = taught(KnnPerformance(settings(epsilon=0.0)), outcomes=200)
    batch = contexts(300, seed=9)
    to_small = rank(policy, batch).score.argmax(axis=1) == 0
    clear = np.abs(batch.features[:, 0]) > 0.5
    assert (to_small == (batch.features[:, 0] > 0))[clear].mean() > 0.95


def test_knn_cost_evens_out_what_is_left():
    policy = KnnCost(settings(**{"budget.small": 1e-3, "budget.middle": 1e-3, "budget.large": 0.0}))
    policy.set_arms(ARMS)
    assert set(rank(policy, contexts(12)).score.argmax(axis=1)) == {0, 1}


@pytest.mark.parametrize("share", [0.0, 0.2, 0.7, 1.0])
def test_threshold_sends_the_target_share_to_the_strong_arm(share):
    policy = Threshold(settings(strong="large", weak="small", share=share, epsilon=0.0))
    taught(policy, outcomes=300)
    ranking = rank(policy, contexts(600, seed=4))
    taken = ranking.score.argmax(axis=1)
    assert (taken == 2).mean() == pytest.approx(share, abs=0.08)
    assert ranking.propensity[:, 2].mean() == pytest.approx(share, abs=0.08)


def test_batch_split_spends_its_batchs_ceiling():
    policy = taught(BatchSplit(settings(ceiling=1e-3)), outcomes=200)
    fresh = BatchSplit(settings(ceiling=1e-3))
    fresh.set_arms(ARMS)
    for arm in ARMS:
        state = policy.dump(arm.arm)
        sums = np.frombuffer(state[:64]).copy()
        sums[[DECIDED, COST_SUM]] = 0.0  # No balance from before.
        fresh.load(arm.arm, sums.tobytes() + state[64:])
    ranking = rank(fresh, contexts(100))
    planned = ranking.cost_usd[np.arange(100), ranking.score.argmax(axis=1)].sum()
    assert 0.09 < planned <= 0.1 + 1e-9


def test_neighbours_forget_the_older_half_and_restore_alike():
    points = Neighbours(2, 1, capacity=8)
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(11, 2))
    for index, vector in enumerate(vectors):
        points.add(vector, np.array([float(index)]), order=index)
    assert points.orders.tolist() == [4, 5, 6, 7, 8, 9, 10]
    copy = Neighbours(2, 1, capacity=8)
    copy.loads(points.dumps())
    queries = rng.normal(size=(20, 2))
    assert (copy.means(queries, count=3)[0] == points.means(queries, count=3)[0]).all()


def test_nearest_point_is_found_and_sharpness_weighs_it():
    points = Neighbours(2, 1)
    points.add(np.array([1.0, 0.0]), np.array([1.0]))
    points.add(np.array([0.0, 1.0]), np.array([0.0]))
    query = np.array([[2.0, 0.2]])
    assert points.means(query, count=1)[0].item() == pytest.approx(1.0)
    assert points.means(query, count=2)[0].item() == pytest.approx(0.5)
    assert points.means(query, count=2, sharpness=10.0)[0].item() > 0.99


def test_cost_and_reward_that_come_apart_make_one_point():
    points = Neighbours(2, 2)
    points.add(np.array([1.0, 0.5]), np.array([0.7, np.nan]))
    points.add(np.array([1.0, 0.5]), np.array([np.nan, 3.0]))
    assert len(points) == 1
    assert points.values == pytest.approx(np.array([[0.7, 3.0]]))


def test_streams_of_chance_are_even_and_apart():
    seeds = np.arange(20_000, dtype=np.uint64)
    one, two = uniforms(seeds, stream=0), uniforms(seeds, stream=1)
    assert one.mean() == pytest.approx(0.5, abs=0.01)
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.03
    assert abs(np.corrcoef(one[1:], one[:-1])[0, 1]) < 0.03
