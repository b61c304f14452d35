"""The pacer: prices follow the plan, bursts and droughts do no harm, nothing is ever nan."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.curve import SpendCurve, spend_curve
from policy.pacer import (
    AIM,
    BURST_REQUESTS,
    PACER_DTYPE,
    Pace,
    Plan,
    affordable,
    charge,
    correct,
    dual_price,
    pacing_of,
    request_rate,
    roll,
    target_usd,
)

HOUR_MS = 3_600_000
CEILING = 1e-3


def plan(
    *, limit: float = 1e9, ceiling: float = np.nan, end_ms: int = HOUR_MS, pid: bool = False,
    paced: bool = True,
) -> Plan:  # fmt: skip
    return Plan(
        limit_usd=np.array([limit]),
        window_start_ms=np.array([0]),
        window_end_ms=np.array([end_ms]),
        per_request_usd=np.array([ceiling]),
        paced=np.array([paced]),
        pid=np.array([pid]),
    )


def market(seed: int = 0, count: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Return rewards and expected costs of three arms: 0.1, 0.8 and 15 ceilings."""
    rng = np.random.default_rng(seed)
    reward = np.clip(rng.normal([0.7, 0.85, 0.9], 0.08, (count, 3)), 0, 1)
    cost = CEILING * np.array([0.1, 0.8, 15.0]) * np.exp(rng.normal(0, 0.5, (count, 3)))
    return reward, cost


def curve_of(reward: np.ndarray, cost: np.ndarray) -> SpendCurve:
    return spend_curve(reward, cost, np.ones(reward.shape, np.bool_))


def price(pace: Pace, plan: Plan, curve: SpendCurve | None, *, now_ms: int = 1) -> float:
    return float(dual_price(pacing_of([pace]), plan, curve, now_ms=now_ms)[0])


@settings(max_examples=50)
@given(seed=st.integers(0, 10_000), arms=st.integers(1, 5), at=st.floats(0, 1))
def test_the_curve_is_what_choosing_at_a_price_really_spends(
    seed: int, arms: int, at: float
) -> None:
    rng = np.random.default_rng(seed)
    reward, cost = rng.random((40, arms)), rng.random((40, arms)) ** 3 + 1e-3
    eligible = rng.random((40, arms)) < 0.8
    eligible[0] = True
    curve = spend_curve(reward, cost, eligible)
    assert (np.diff(curve.dual_price) >= 0).all()
    assert (np.diff(curve.cost_usd) <= 1e-12).all()
    index = int(at * (len(curve.dual_price) - 1))
    above = curve.dual_price[index + 1 : index + 2]
    upper = float(above[0]) if len(above) else float(curve.dual_price[index]) + 1.0
    middle = (float(curve.dual_price[index]) + upper) / 2.0
    rows = eligible.any(axis=1)
    score = np.where(eligible, reward - middle * cost, -np.inf)[rows]
    spent = cost[rows][np.arange(rows.sum()), score.argmax(axis=1)].mean()
    if upper > curve.dual_price[index]:
        assert spent == pytest.approx(curve.cost_usd[index], abs=1e-9)


def test_the_price_of_a_target_spends_the_target() -> None:
    curve = curve_of(*market())
    for target in (0.3e-3, 0.7e-3, 2e-3):
        found = curve.price_at(np.array([target]))
        assert curve.cost_at(found)[0] == pytest.approx(target, rel=1e-6)
    assert curve.price_at(np.array([1.0]))[0] == 0.0
    assert curve.cost_at(curve.price_at(np.array([0.0])))[0] == curve.cost_usd[-1]


def test_no_eligible_arm_makes_no_curve() -> None:
    with pytest.raises(ValueError, match="eligible"):
        spend_curve(np.ones((1, 2)), np.ones((1, 2)), np.zeros((1, 2), np.bool_))


@pytest.mark.parametrize("pid", [False, True])
@pytest.mark.parametrize("in_flight", [0, 50, 500])
def test_a_ceiling_is_kept_and_used(in_flight: int, pid: bool) -> None:
    """2,000 requests whose true cost is log-normal around the expectation."""
    reward, cost = market(seed=1, count=2_000)
    curve = curve_of(*market(seed=2))
    rng = np.random.default_rng(3)
    true = cost * np.exp(rng.normal(-0.125, 0.5, cost.shape))
    pace, planned = Pace(), plan(ceiling=CEILING, end_ms=10**12, pid=pid)
    waiting: list[tuple[float, float]] = []
    spent = 0.0
    for row in range(len(cost)):
        pacing = pacing_of([pace])
        at = dual_price(pacing, planned, curve, now_ms=row)
        score = np.where(affordable(pacing, planned, cost[row]), reward[row] - at * cost[row], -9.0)
        arm = int(score.argmax())
        assert score[arm] > -9.0
        expected = float(cost[row, arm])
        charge(pace, expected_usd=expected, now_ms=row, dual_price=float(at[0]),
               planned_usd=float(curve.cost_at(at)[0]))  # fmt: skip
        waiting.append((expected, float(true[row, arm])))
        spent += true[row, arm]
        assert spent <= CEILING * (row + 1 + BURST_REQUESTS)
        if len(waiting) > in_flight:
            charged, paid = waiting.pop(0)
            correct(pace, delta_usd=paid - charged, expected_usd=charged, now_ms=row)
    assert spent <= CEILING * len(cost)
    assert spent >= 0.9 * CEILING * len(cost)


def test_a_price_cut_lowers_the_price_at_once() -> None:
    reward, cost = market()
    pace, planned = Pace(), plan(ceiling=CEILING)
    before = price(pace, planned, curve_of(reward, cost))
    after = price(pace, planned, curve_of(reward, cost * [1.0, 1.0, 0.01]))
    assert before > 5.0
    assert after == 0.0


def test_spend_above_the_line_raises_the_price_and_below_lowers_it() -> None:
    curve, planned = curve_of(*market()), plan(ceiling=CEILING)
    prices = []
    for expected in (0.5, 0.99, 1.5):
        pace = Pace()
        for step in range(100):
            charge(pace, expected_usd=expected * CEILING, now_ms=step,
                   planned_usd=expected * CEILING)  # fmt: skip
            correct(pace, delta_usd=0.0, expected_usd=expected * CEILING, now_ms=step)
        prices.append(price(pace, planned, curve))
    assert prices == sorted(prices)
    assert prices[0] < prices[1] < prices[2]


def test_the_clock_divides_what_is_left_among_the_requests_to_come() -> None:
    pace, planned = Pace(), plan(limit=3.6)
    roll(pace, window_start_ms=0, window_end_ms=HOUR_MS)
    for second in range(1_800):
        charge(pace, expected_usd=1e-3, now_ms=second * 1_000 + 1)
    left = float(target_usd(pacing_of([pace]), planned, now_ms=1_800_000)[0])
    assert left == pytest.approx((3.6 - 1.8) / 1_800, rel=0.05)


def test_a_burst_is_met_at_once_and_forgotten() -> None:
    pace = Pace()
    roll(pace, window_start_ms=0, window_end_ms=HOUR_MS)
    for second in range(600):
        charge(pace, expected_usd=0.0, now_ms=second * 1_000 + 1)
    calm = float(request_rate(pacing_of([pace]), now_ms=600_000)[0])
    for tick in range(2_000):
        charge(pace, expected_usd=0.0, now_ms=600_000 + tick * 10)
    burst = float(request_rate(pacing_of([pace]), now_ms=620_000)[0])
    later = float(request_rate(pacing_of([pace]), now_ms=1_500_000)[0])
    assert calm == pytest.approx(1e-3, rel=0.1)
    assert burst > 60 * calm
    assert later < 3 * calm


def test_one_request_an_hour_gets_a_fair_share_of_the_day() -> None:
    pace, planned = Pace(), plan(limit=2.4, end_ms=24 * HOUR_MS)
    roll(pace, window_start_ms=0, window_end_ms=24 * HOUR_MS)
    for hour in range(12):
        charge(pace, expected_usd=0.1, now_ms=hour * HOUR_MS + 1)
    share = float(target_usd(pacing_of([pace]), planned, now_ms=12 * HOUR_MS)[0])
    assert 0.05 < share < 0.3


def test_a_new_window_restarts_the_spend_and_keeps_what_was_learned() -> None:
    pace = Pace()
    for step in range(50):
        charge(pace, expected_usd=2e-3, now_ms=step + 1, dual_price=7.0, planned_usd=1e-3)
    rate = pace.count_slow
    roll(pace, window_start_ms=HOUR_MS, window_end_ms=2 * HOUR_MS)
    assert (pace.spent_usd, pace.requests, pace.open_usd2, pace.open_calls) == (0, 0, 0, 0)
    assert (pace.count_slow, pace.total) == (rate, 50)
    assert pace.dual_price > 0.0


def test_a_dear_arm_is_affordable_once_it_was_saved_for() -> None:
    planned, cost = plan(ceiling=CEILING), CEILING * np.array([0.1, 0.9, 15.0])
    pace = Pace()
    assert affordable(pacing_of([pace]), planned, cost).tolist() == [True, True, False]
    for step in range(200):
        charge(pace, expected_usd=0.1 * CEILING, now_ms=step)
        correct(pace, delta_usd=0.0, expected_usd=0.1 * CEILING, now_ms=step)
    assert affordable(pacing_of([pace]), planned, cost).tolist() == [True, True, True]


@pytest.mark.parametrize(
    ("cheapest", "spent", "fits"),
    [
        pytest.param(0.5, 1_000.0, True, id="below-the-ceiling-is-never-refused"),
        pytest.param(2.0, BURST_REQUESTS - 2.0, True, id="above-it-within-the-burst"),
        pytest.param(2.0, BURST_REQUESTS, False, id="above-it-beyond-the-burst"),
    ],
)
def test_who_is_refused(cheapest: float, spent: float, fits: bool) -> None:
    pace = Pace(requests=0.0, spent_usd=spent * CEILING)
    cost = CEILING * np.array([cheapest, np.inf])
    found = affordable(pacing_of([pace]), plan(ceiling=CEILING), cost)
    assert found.tolist() == [fits, False]


def test_without_a_pace_the_price_is_zero() -> None:
    assert price(Pace(), plan(limit=0.0, paced=False), curve_of(*market())) == 0.0


numbers = st.floats(0, 1e6, allow_subnormal=False)


@settings(max_examples=200)
@given(
    limit=numbers,
    ceiling=st.one_of(st.just(float("nan")), numbers),
    steps=st.lists(
        st.tuples(numbers, st.integers(0, 10**13), numbers, st.floats(-1e6, 1e6)), max_size=8
    ),
    now_ms=st.integers(0, 10**13),
    pid=st.booleans(),
    known=st.booleans(),
)
def test_the_price_is_a_number_whatever_happens(
    limit: float, ceiling: float, steps: list[tuple[float, int, float, float]], now_ms: int,
    pid: bool, known: bool,
) -> None:  # fmt: skip
    pace, planned = Pace(), plan(limit=limit, ceiling=ceiling, pid=pid)
    for expected, at_ms, used, delta in steps:
        charge(pace, expected_usd=expected, now_ms=at_ms, dual_price=used, planned_usd=used)
        correct(pace, delta_usd=delta, expected_usd=expected, now_ms=at_ms)
    curve = curve_of(*market(count=8)) if known else None
    found = price(pace, planned, curve, now_ms=now_ms)
    assert np.isfinite(found)
    assert found >= 0.0
    assert affordable(pacing_of([pace]), planned, np.array([0.0, 1.0])).shape == (2,)


def test_state_is_128_bytes_and_survives_packing() -> None:
    pace = Pace()
    charge(pace, expected_usd=1e-3, now_ms=5, dual_price=2.0, planned_usd=1e-3)
    assert PACER_DTYPE.itemsize == len(pace.pack()) == 128
    assert Pace.unpack(pace.pack()) == pace
    assert AIM < 1.0
