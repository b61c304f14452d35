"""Errors that arms share: found where the stream has moved on, of little weight where not."""

import numpy as np
import pytest

from policy.arm_budgets import evaluate_arm_budgets, prepare
from policy.recorded import Recorded
from policy.shared_errors import SharedErrors


def taught(features, reward_error, log_error):
    errors = SharedErrors(features)
    for row, (off, ratio) in enumerate(zip(reward_error, log_error, strict=True)):
        errors.learn(row, reward=(0.5, 0.5 + off), cost_usd=(1e-3, 1e-3 * np.exp(ratio)))
    return errors


def test_before_anything_was_served_estimates_stay():
    errors = SharedErrors(np.eye(3))
    reward, cost = np.full((3, 2), 0.4), np.full((3, 2), 1e-3)
    found = errors.correct(np.arange(3), reward, cost, seen=0)
    assert (found[0] == reward).all() and (found[1] == cost).all()


def test_what_has_moved_is_found_where_it_has_moved():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(402, 3)) * 0.1
    moved = np.arange(402) % 2 == 0
    features[:, 0] += np.where(moved, 1.0, -1.0)
    off = np.where(moved, -0.4, 0.0) + rng.normal(0, 0.1, 402)
    errors = taught(features, off[:400], np.where(moved, 0.7, 0.0)[:400])
    rows, reward, cost = np.array([400, 401]), np.full((2, 2), 0.8), np.full((2, 2), 1e-3)
    reward, cost = errors.correct(rows, reward, cost, seen=400)
    assert reward == pytest.approx(np.array([[0.43, 0.43], [0.8, 0.8]]), abs=0.07)
    assert cost[0] == pytest.approx(1.9e-3, rel=0.1)
    assert cost[1] == pytest.approx(1e-3, rel=0.1)


@pytest.mark.parametrize("seed", range(5))
def test_errors_that_foretell_nothing_move_estimates_little(seed):
    rng = np.random.default_rng(seed)
    errors = taught(rng.normal(size=(500, 8)), rng.normal(0, 0.4, 500), rng.normal(0, 0.5, 500))
    reward, cost = np.full((500, 1), 0.5), np.full((500, 1), 1e-3)
    corrected, usd = errors.correct(np.arange(500), reward, cost, seen=500)
    assert (corrected - reward).std() < 0.04
    assert np.log(usd / cost).std() < 0.06


def test_a_request_is_not_judged_by_itself_nor_by_later_ones():
    features = np.ones((6, 2))
    off = np.array([-0.3, -0.3, -0.3, 0.5, 0.5, 0.5])
    one, other = taught(features, off, off), taught(features, off * [1, 1, 1, 9, 1, 1], off)
    assert (one._foretold(np.array([3]), seen=6) == other._foretold(np.array([3]), seen=6)).all()
    early = taught(features, off[:3], off[:3])
    found = one._foretold(np.array([4]), seen=3)
    assert (found == early._foretold(np.array([4]), seen=3)).all()


def moved_case(seed):
    """Arms differ in the stream as in the history; half of its requests are hard and long."""
    rng = np.random.default_rng(seed)

    def recorded(count, *, moved):
        features = rng.normal(size=(count, 4))
        features[:, 0] += -4.0 if moved else 4.0
        hard = moved & (features[:, 1:2] > 0)
        chance = np.linspace(0.75, 0.95, 20) - 0.7 * hard
        reward = (rng.random((count, 20)) < chance).astype(float)
        cost = np.geomspace(1, 30, 20) * 1e-5 * rng.lognormal(0, 0.3, (count, 1)) * (1 + 3 * hard)
        return Recorded(features=features, reward=reward, cost_usd=cost)

    history, stream = recorded(300, moved=False), recorded(500, moved=True)
    budget = np.full(20, float(stream.cost_usd.sum(axis=0).min()) / 20)
    return prepare(history, stream, budget)


def test_port_finds_its_way_where_the_history_is_of_another_task(monkeypatch):
    cases = [moved_case(seed) for seed in (3, 4)]

    def earned(method):
        return sum(evaluate_arm_budgets(case, (method,))[method].reward for case in cases)

    corrected, rival = earned("port"), earned("batch-split")
    monkeypatch.setattr(
        SharedErrors, "correct", lambda self, rows, reward, cost, *, seen: (reward, cost)
    )
    assert corrected > 1.1 * earned("port")
    assert corrected > 1.1 * rival
