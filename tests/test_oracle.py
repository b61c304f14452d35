"""Oracles: budgets kept exactly, bounds that the linear program confirms."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from policy.oracle import (
    arm_budgets_program,
    outcome,
    unlimited,
    within_arm_budgets,
    within_budget,
    within_request_ceiling,
)


def matrices(seed, requests, arms):
    rng = np.random.default_rng(seed)
    # Rounded rewards and costs give the ties and the dominated arms of real data.
    reward = rng.integers(0, 5, (requests, arms)) / 4
    cost = rng.integers(0, 6, (requests, arms)) * 0.25 * (1 + np.arange(arms))
    return reward, cost


def program_value(reward, cost, budget):
    requests, arms = reward.shape
    rows = np.kron(np.eye(requests), np.ones(arms))
    solved = linprog(
        -reward.ravel(),
        A_ub=np.vstack([rows, cost.ravel()]),
        b_ub=np.append(np.ones(requests), budget),
        method="highs",
    )
    return -solved.fun


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    requests=st.integers(1, 12),
    arms=st.integers(1, 4),
    share=st.floats(0, 1.2),
)
def test_pooled_bound_is_the_programs_value_and_the_choice_keeps_the_budget(
    seed, requests, arms, share
):
    reward, cost = matrices(seed, requests, arms)
    budget = share * cost.max(axis=1).sum()
    best = within_budget(reward, cost, budget_usd=budget)
    earned, spent = outcome(reward, cost, best.choice)
    assert best.bound == pytest.approx(program_value(reward, cost, budget), abs=1e-7)
    assert spent.sum() <= budget + 1e-12
    assert best.bound - 1.0 - 1e-9 <= earned.sum() <= best.bound + 1e-9


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), requests=st.integers(1, 15), arms=st.integers(1, 4))
def test_arm_budgets_are_kept_and_weak_duality_closes(seed, requests, arms):
    reward, cost = matrices(seed, requests, arms)
    budget = np.random.default_rng(seed + 1).random(arms) * cost.sum(axis=0)
    best = within_arm_budgets(reward, cost, budget)
    earned, _ = outcome(reward, cost, best.choice)
    for arm in range(arms):
        assert cost[best.choice == arm, arm].sum() <= budget[arm] + 1e-9
    assert best.bound - arms - 1e-6 <= earned.sum() <= best.bound + 1e-6
    dual = (
        best.dual_price @ budget
        + np.maximum(reward - best.dual_price * cost, 0.0).max(axis=1).sum()
    )
    assert dual == pytest.approx(best.bound, abs=1e-6)


def test_tiny_dollars_are_no_zeros():
    reward = np.array([[0.4, 1.0]] * 10)
    cost = np.array([[1e-7, 1e-6]] * 10)
    _, price, bound = arm_budgets_program(reward, cost, np.array([1e-5, 3e-6]))
    assert bound == pytest.approx(3 * 1.0 + 7 * 0.4)
    assert price == pytest.approx([0.0, 0.6e6])


def test_unlimited_takes_the_cheapest_of_the_best():
    best = unlimited(np.array([[1.0, 1.0, 0.2]]), np.array([[2.0, 1.0, 0.1]]))
    assert best.choice.tolist() == [1]
    assert best.bound == 1.0


def test_request_ceiling_holds_for_every_request():
    reward, cost = matrices(5, 200, 4)
    best = within_request_ceiling(reward, cost, ceiling_usd=0.6)
    earned, spent = outcome(reward, cost, best.choice)
    assert spent.max() <= 0.6
    assert earned.sum() == pytest.approx(best.bound)
    assert within_request_ceiling(reward, cost + 1.0, ceiling_usd=0.6).choice.tolist() == [-1] * 200


def test_no_budget_sends_nothing_that_costs():
    best = within_budget(np.ones((3, 2)), np.ones((3, 2)), budget_usd=0.0)
    assert best.choice.tolist() == [-1, -1, -1]
    assert best.bound == 0.0


@pytest.mark.parametrize(
    ("reward", "cost"),
    [
        pytest.param(np.ones((2, 2)), np.ones((2, 3)), id="shapes-differ"),
        pytest.param(np.ones((2, 2)), -np.ones((2, 2)), id="negative-cost"),
        pytest.param(np.full((2, 2), np.nan), np.ones((2, 2)), id="nan-reward"),
    ],
)
def test_bad_matrices_are_refused(reward, cost):
    with pytest.raises(ValueError, match="must be"):
        within_budget(reward, cost, budget_usd=1.0)
