"""StageRoute: the deployed set and the shares are optimal, and the stages hold."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as sized
from hypothesis import strategies as st
from scipy.optimize import linprog

from policy.deploy import deploy, fill, route
from policy.money import Price
from policy.registry import UnknownPolicyError, make_policy
from policy.stageroute import StageRoute
from policy.terms import Arm, Contexts, Learning, Settings


def program(reward, cost, capacity, budget):
    arms = len(reward)
    solved = linprog(
        -reward,
        A_ub=cost[None] / cost.mean(),
        b_ub=[budget / cost.mean()],
        A_eq=np.ones((1, arms)),
        b_eq=[1.0],
        bounds=list(zip(np.zeros(arms), capacity, strict=True)),
        method="highs",
    )
    return -solved.fun if solved.status == 0 else None


def arms_of(seed, arms):
    rng = np.random.default_rng(seed)
    # Quarters give ties; costs span three decades as real prices do.
    reward = rng.integers(0, 9, arms) / 8
    cost = 10.0 ** rng.integers(-6, -2, arms) * rng.integers(1, 4, arms)
    capacity = rng.choice([0.4, 0.5, 1.0], arms)
    return reward, cost, capacity


@sized(max_examples=80, deadline=None)
@given(seed=st.integers(0, 10**6), arms=st.integers(1, 8), level=st.floats(0.0, 1.2))
def test_shares_solve_the_program(seed, arms, level):
    reward, cost, capacity = arms_of(seed, arms)
    capacity[0] = 1.0
    budget = level * cost.max()
    shares = route(reward, cost, capacity, budget_usd=budget)
    best = program(reward, cost, capacity, budget)
    assert shares.share.sum() == pytest.approx(1.0)
    assert (shares.share >= -1e-12).all()
    assert (shares.share <= capacity + 1e-12).all()
    if best is None:
        cheapest = fill(-cost, cost, capacity, dual_price=0.0)
        assert shares.share @ cost == pytest.approx(cheapest @ cost)
        return
    assert shares.share @ cost <= budget * (1 + 1e-9)
    assert shares.share @ reward == pytest.approx(best, abs=1e-6)


@sized(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), arms=st.integers(1, 6), slots=st.integers(1, 4))
def test_deployed_set_is_the_best_of_all_sets(seed, arms, slots):
    reward, cost, capacity = arms_of(seed, arms)
    capacity[:] = 1.0
    budget = float(np.median(cost))
    chosen = deploy(reward, cost, capacity, budget_usd=budget, arms_max=slots)
    assert 1 <= chosen.sum() <= slots

    def value(columns):
        found = program(reward[columns], cost[columns], capacity[columns], budget)
        return -np.inf if found is None else found

    best = max(
        value(list(columns))
        for size in range(1, min(slots, arms) + 1)
        for columns in itertools.combinations(range(arms), size)
    )
    assert value(np.flatnonzero(chosen)) == pytest.approx(best, abs=3e-4)


def test_a_budget_that_cannot_be_kept_takes_the_cheapest_set():
    chosen = deploy(
        np.array([0.9, 0.5]), np.array([9.0, 2.0]), np.ones(2), budget_usd=1.0, arms_max=1
    )
    assert chosen.tolist() == [False, True]


def test_too_little_capacity_takes_what_there_is():
    chosen = deploy(np.array([0.9]), np.array([1.0]), np.array([0.4]), budget_usd=2.0, arms_max=6)
    assert chosen.tolist() == [True]
    share = route(np.array([0.9]), np.array([1.0]), np.array([0.4]), budget_usd=2.0).share
    assert share.tolist() == [0.4]


def test_no_arms_are_no_error():
    nothing = np.zeros(0)
    assert len(deploy(nothing, nothing, nothing, budget_usd=1.0, arms_max=3)) == 0
    assert len(route(nothing, nothing, nothing, budget_usd=1.0).share) == 0


@pytest.mark.parametrize(
    ("reward", "cost", "slots"),
    [
        pytest.param(np.ones(2), np.ones(3), 1, id="shapes"),
        pytest.param(np.array([np.nan]), np.ones(1), 1, id="nan"),
        pytest.param(np.ones(1), np.ones(1), 0, id="no-slot"),
    ],
)
def test_bad_arguments_are_refused(reward, cost, slots):
    with pytest.raises(ValueError):
        deploy(reward, cost, np.ones(len(reward)), budget_usd=1.0, arms_max=slots)


ARMS = tuple(
    Arm(arm=name, price=Price(version=1, input=price, output=price), explore=0)
    for name, price in (("a", 100_000), ("b", 400_000), ("c", 2_000_000), ("d", 8_000_000))
)
TOKENS = 100
COST = np.array([1e-5, 4e-5, 2e-4, 8e-4])
SKILL = np.array([0.5, 0.7, 0.8, 0.95])


def stageroute(*, arms=ARMS, **options):
    policy = StageRoute(
        Settings(dimensions=1, options={"horizon": 1_000, "stages": 10} | options), make_policy
    )
    policy.set_arms(arms)
    return policy


def contexts(count, seed):
    rng = np.random.default_rng(seed)
    return Contexts(
        features=np.hstack([rng.normal(size=(count, 1)), np.ones((count, 1))]),
        input_tokens=np.full(count, TOKENS // 2),
        max_output_tokens=np.full(count, 1_000),
        seeds=rng.integers(0, 2**63, count, dtype=np.uint64),
    )


def run(policy, requests, *, seed=0, batch=10, price=0.0, arms=ARMS):
    """Route and learn batch by batch; return the columns taken."""
    rng = np.random.default_rng(seed)
    taken = []
    for start in range(0, requests, batch):
        part = contexts(batch, seed * 100_003 + start)
        eligible = np.ones((batch, len(arms)), bool)
        ranking = policy.rank(part, dual_price=np.full(batch, price), eligible=eligible)
        assert ranking.propensity.sum(axis=1) == pytest.approx(1.0)
        for row, column in enumerate(ranking.score.argmax(axis=1)):
            taken.append(int(column))
            policy.decided(arms[column].arm, part.features[row], explored=False)
            policy.learn(
                Learning(
                    arm=arms[column].arm,
                    features=part.features[row],
                    input_tokens=TOKENS // 2,
                    age=0,
                    reward=float(rng.random() < SKILL[column]),
                    cost_nanousd=round(COST[column] * 1e9),
                    output_tokens=TOKENS // 2,
                )
            )
    return np.array(taken)


def test_budget_is_kept_and_well_spent():
    ceiling = 1.5e-4
    taken = run(stageroute(ceiling=ceiling), 2_000)
    assert COST[taken].mean() <= ceiling
    best = route(SKILL, COST, np.full(4, 0.4), budget_usd=ceiling)
    assert SKILL[taken].mean() >= best.share @ SKILL - 0.05


def test_no_arm_takes_more_than_its_capacity_and_draws_follow_the_probabilities():
    policy = stageroute(ceiling=1.5e-4)
    run(policy, 600)
    batch, eligible = contexts(4_000, 77), np.ones((4_000, 4), bool)
    ranking = policy.rank(batch, dual_price=np.zeros(4_000), eligible=eligible)
    shares = np.bincount(ranking.score.argmax(axis=1), minlength=4) / 4_000
    assert (ranking.propensity <= 0.4 + 1e-9).all()
    assert shares == pytest.approx(ranking.propensity[0], abs=0.03)


def test_only_deployed_arms_are_taken_and_they_change_at_stages_only():
    policy = stageroute(ceiling=4e-4, arms_max=3)
    seen = []
    for stage in range(6):
        before = policy._deployed().tolist()
        taken = run(policy, 90, seed=stage)
        assert policy._deployed().tolist() == before
        assert sum(before) <= 3
        assert set(taken) <= set(np.flatnonzero(before))
        run(policy, 10, seed=50 + stage)
        seen.append(before)
    assert len({tuple(row) for row in seen}) > 1


def test_a_new_arm_waits_for_the_next_stage_and_is_then_tried():
    policy = stageroute(arms=ARMS[:3], ceiling=4e-4)
    assert set(run(policy, 50, arms=ARMS[:3])) <= {0, 1, 2}
    policy.set_arms(ARMS)
    assert set(run(policy, 40, seed=1)) <= {0, 1, 2}
    assert 3 in set(run(policy, 110, seed=2))


def test_a_removed_set_is_replaced_at_once():
    policy = stageroute(ceiling=1.5e-4, arms_max=3)
    gone = tuple(
        replace(arm, deployed=not on) for arm, on in zip(ARMS, policy._deployed(), strict=True)
    )
    policy.set_arms(gone)
    assert (policy._deployed() & [arm.deployed for arm in gone]).any()


def test_without_a_ceiling_the_pacers_price_decides():
    policy = stageroute(capacity=1.0)
    run(policy, 900)
    batch, eligible = contexts(50, 5), np.ones((50, 4), bool)
    dear = policy.rank(batch, dual_price=np.full(50, 1e7), eligible=eligible)
    assert (dear.propensity[:, 0] == 1.0).all()
    free = policy.rank(batch, dual_price=np.zeros(50), eligible=eligible)
    assert (free.propensity[:, 3] > 0.0).all()


@pytest.mark.parametrize("inner", [None, "knn-performance"])
def test_a_restored_policy_goes_on_alike(inner):
    options = {"ceiling": 1.5e-4} | ({} if inner is None else {"inner": inner})
    policy, copy = stageroute(**options), stageroute(**options)
    run(policy, 250)
    for arm in ARMS:
        copy.load(arm.arm, policy.dump(arm.arm))
    assert (run(policy, 200, seed=3) == run(copy, 200, seed=3)).all()
    assert [policy.dump(a.arm) for a in ARMS] == [copy.dump(a.arm) for a in ARMS]


def test_an_inner_policy_ranks_within_set_and_capacity():
    policy = stageroute(arms_max=3, inner="greedy", **{"inner.epsilon": 0.0})
    taken = run(policy, 600, price=10.0)
    for start in range(0, 600, 100):
        stage = np.bincount(taken[start : start + 100], minlength=4)
        assert stage.max() <= 0.4 * 100 + 12
        assert (stage > 0).sum() <= 3


@pytest.mark.parametrize(
    "options",
    [
        {"capacity": 0.0}, {"radius": -1.0}, {"ceiling": 0.0}, {"arms_max": 0}, {"stages": 0},
        {"inner": "unheard-of"}, {"inner": "greedy", "inner.epsilon": 2.0}, {"seven": 1},
    ],
)  # fmt: skip
def test_impossible_options_are_refused(options):
    with pytest.raises((ValueError, UnknownPolicyError)):
        stageroute(**options)
