"""The pacer: prices follow the plan, bursts and droughts do no harm, nothing is ever nan."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.curve import SpendCurve, spend_curve
from policy.money import NANO_PER_USD
from policy.pace import PACER_DTYPE, Pacing, hold
from policy.pace import charge as charge_batch
from policy.pace import correct as correct_calls
from policy.pace import roll as roll_one
from policy.pacer import (
    AIM,
    BURST_REQUESTS,
    HELD_MOST,
    Plan,
    Standing,
    affordable,
    dual_price,
    request_rate,
    standing_of,
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


ONE = np.zeros(1, np.int64)


def new() -> Pacing:
    """Return the state of one budget that nothing is known of."""
    return np.zeros(1, PACER_DTYPE)


def nano(usd: float) -> np.ndarray:
    return np.array([round(usd * NANO_PER_USD)])


def charge(
    pace: Pacing, *, expected_usd: float, now_ms: int, dual_price: float = 0.0,
    planned_usd: float = 0.0,
) -> None:  # fmt: skip
    """Decide one request."""
    hold(pace, ONE, nano(expected_usd))
    charge_batch(
        pace, requests=np.ones(1, np.int64), cost_nanousd=nano(expected_usd),
        dual_price=np.array([dual_price]), planned_usd=np.array([planned_usd]), now_ms=now_ms,
    )  # fmt: skip


def correct(pace: Pacing, *, delta_usd: float, expected_usd: float) -> None:
    """Settle one call."""
    correct_calls(pace, ONE, delta_nanousd=nano(delta_usd), expected_nanousd=nano(expected_usd))


def roll(pace: Pacing, *, window_start_ms: int, window_end_ms: int) -> None:
    roll_one(pace, 0, window_start_ms=window_start_ms, window_end_ms=window_end_ms)


def allowed(pace: Pacing, plan: Plan, cost_usd: np.ndarray) -> np.ndarray:
    """Return which arms a request may use."""
    standing = standing_of(pace, plan.per_request_usd)
    return affordable(standing, cost_usd, cheapest=cost_usd == cost_usd.min())


def price(pace: Pacing, plan: Plan, curve: SpendCurve | None, *, now_ms: int = 1) -> float:
    return float(dual_price(pace, plan, curve, now_ms=now_ms)[0])


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
    pace, planned = new(), plan(ceiling=CEILING, end_ms=10**12, pid=pid)
    waiting: list[tuple[float, float]] = []
    spent = 0.0
    for row in range(len(cost)):
        at = dual_price(pace, planned, curve, now_ms=row)
        score = np.where(allowed(pace, planned, cost[row]), reward[row] - at * cost[row], -9.0)
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
            correct(pace, delta_usd=paid - charged, expected_usd=charged)
    assert spent <= CEILING * len(cost)
    assert spent >= 0.9 * CEILING * len(cost)


def test_a_price_cut_lowers_the_price_at_once() -> None:
    reward, cost = market()
    pace, planned = new(), plan(ceiling=CEILING)
    before = price(pace, planned, curve_of(reward, cost))
    after = price(pace, planned, curve_of(reward, cost * [1.0, 1.0, 0.01]))
    assert before > 5.0
    assert after == 0.0


def test_spend_above_the_line_raises_the_price_and_below_lowers_it() -> None:
    curve, planned = curve_of(*market()), plan(ceiling=CEILING)
    prices = []
    for expected in (0.5, 0.99, 1.5):
        pace = new()
        for step in range(100):
            charge(pace, expected_usd=expected * CEILING, now_ms=step,
                   planned_usd=expected * CEILING)  # fmt: skip
            correct(pace, delta_usd=0.0, expected_usd=expected * CEILING)
        prices.append(price(pace, planned, curve))
    assert prices == sorted(prices)
    assert prices[0] < prices[1] < prices[2]


def test_the_clock_divides_what_is_left_among_the_requests_to_come() -> None:
    pace, planned = new(), plan(limit=3.6)
    roll(pace, window_start_ms=0, window_end_ms=HOUR_MS)
    for second in range(1_800):
        charge(pace, expected_usd=1e-3, now_ms=second * 1_000 + 1)
    left = float(target_usd(pace, planned, now_ms=1_800_000)[0])
    assert left == pytest.approx((3.6 - 1.8) / 1_800, rel=0.05)


def test_a_burst_is_met_at_once_and_forgotten() -> None:
    pace = new()
    roll(pace, window_start_ms=0, window_end_ms=HOUR_MS)
    for second in range(600):
        charge(pace, expected_usd=0.0, now_ms=second * 1_000 + 1)
    calm = float(request_rate(pace, now_ms=600_000)[0])
    for tick in range(2_000):
        charge(pace, expected_usd=0.0, now_ms=600_000 + tick * 10)
    burst = float(request_rate(pace, now_ms=620_000)[0])
    later = float(request_rate(pace, now_ms=1_500_000)[0])
    assert calm == pytest.approx(1e-3, rel=0.1)
    assert burst > 60 * calm
    assert later < 3 * calm


def test_one_request_an_hour_gets_a_fair_share_of_the_day() -> None:
    pace, planned = new(), plan(limit=2.4, end_ms=24 * HOUR_MS)
    roll(pace, window_start_ms=0, window_end_ms=24 * HOUR_MS)
    for hour in range(12):
        charge(pace, expected_usd=0.1, now_ms=hour * HOUR_MS + 1)
    share = float(target_usd(pace, planned, now_ms=12 * HOUR_MS)[0])
    assert 0.05 < share < 0.3


def test_a_new_window_restarts_the_spend_and_keeps_what_was_learned() -> None:
    pace = new()
    for step in range(50):
        charge(pace, expected_usd=2e-3, now_ms=step + 1, dual_price=7.0, planned_usd=1e-3)
    rate = float(pace["count_slow"][0])
    roll(pace, window_start_ms=HOUR_MS, window_end_ms=2 * HOUR_MS)
    begun = pace[["spent_nanousd", "requests", "open_usd2", "open_calls"]][0]
    assert begun.item() == (0, 0, 0.0, 0)
    assert pace[["count_slow", "total"]][0].item() == (rate, 50)
    assert pace["dual_price"][0] > 0.0


def test_a_dear_arm_is_affordable_once_it_was_saved_for() -> None:
    planned, cost = plan(ceiling=CEILING), CEILING * np.array([0.1, 0.9, 15.0])
    pace = new()
    assert allowed(pace, planned, cost).tolist() == [True, True, False]
    for step in range(200):
        charge(pace, expected_usd=0.1 * CEILING, now_ms=step)
        correct(pace, delta_usd=0.0, expected_usd=0.1 * CEILING)
    assert allowed(pace, planned, cost).tolist() == [True, True, True]


@pytest.mark.parametrize(
    ("cheapest", "spent", "fits"),
    [
        pytest.param(0.5, 1_000.0, True, id="below-the-ceiling-is-never-refused"),
        pytest.param(2.0, BURST_REQUESTS - 2.0, True, id="above-it-within-the-burst"),
        pytest.param(2.0, BURST_REQUESTS, False, id="above-it-beyond-the-burst"),
    ],
)
def test_who_is_refused(cheapest: float, spent: float, fits: bool) -> None:
    pace = new()
    pace["spent_nanousd"] = nano(spent * CEILING)
    cost = CEILING * np.array([cheapest, np.inf])
    found = allowed(pace, plan(ceiling=CEILING), cost)
    assert found.tolist() == [fits, False]


@pytest.mark.parametrize(
    ("cost", "saved", "fits"),
    [
        pytest.param(20.0, 150.0, False, id="ten-times-the-cost-would-not-fit"),
        pytest.param(20.0, 320.0, True, id="saved-for-the-rare-long-answer"),
        pytest.param(2.0, 3.0, True, id="a-few-ceilings-need-no-such-margin"),
    ],
)
def test_a_dear_call_needs_room_for_a_rare_long_answer(
    cost: float, saved: float, fits: bool
) -> None:
    standing = Standing(
        ceiling_usd=np.array([CEILING]),
        requests=np.array([saved]),
        spent_usd=np.zeros(1),
        open_usd2=np.zeros(1),
        noise=np.ones(1),
    )
    costs = CEILING * np.array([0.1, cost])
    found = affordable(standing, costs, cheapest=costs == costs.min())
    assert found.tolist() == [True, fits]


def test_without_a_pace_the_price_is_zero() -> None:
    assert price(new(), plan(limit=0.0, paced=False), curve_of(*market())) == 0.0


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
    pace, planned = new(), plan(limit=limit, ceiling=ceiling, pid=pid)
    for expected, at_ms, used, delta in steps:
        charge(pace, expected_usd=expected, now_ms=at_ms, dual_price=used, planned_usd=used)
        correct(pace, delta_usd=delta, expected_usd=expected)
    curve = curve_of(*market(count=8)) if known else None
    found = price(pace, planned, curve, now_ms=now_ms)
    assert np.isfinite(found)
    assert found >= 0.0
    assert allowed(pace, planned, np.array([0.0, 1.0])).shape == (2,)


def test_a_batch_moves_the_means_like_its_requests_one_by_one() -> None:
    one, whole = new(), new()
    for _ in range(30):
        charge(one, expected_usd=2e-3, now_ms=5, dual_price=3.0, planned_usd=1e-3)
    hold(whole, np.zeros(30, np.int64), np.full(30, 2_000_000))
    charge_batch(
        whole, requests=np.array([30]), cost_nanousd=np.array([60_000_000]),
        dual_price=np.array([3.0]), planned_usd=np.array([1e-3]), now_ms=5,
    )  # fmt: skip
    for name in PACER_DTYPE.names or ():
        assert whole[name][0] == pytest.approx(one[name][0])


outcomes = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 10**9), st.integers(0, 10**9)))


@given(outcomes=outcomes, cut=st.integers(0, 20))
def test_how_outcomes_are_divided_changes_nothing(
    outcomes: list[tuple[int, int, int]], cut: int
) -> None:
    def run(parts: list[list[tuple[int, int, int]]]) -> bytes:
        pacing = np.zeros(3, PACER_DTYPE)
        budgets = np.repeat(np.arange(3), 40)
        hold(pacing, budgets, np.full(120, 5_000_000))
        for part in parts:
            columns = np.array(part, np.int64).reshape(-1, 3).T
            correct_calls(
                pacing, columns[0], delta_nanousd=columns[1] - columns[2],
                expected_nanousd=columns[2],
            )  # fmt: skip
        return pacing.tobytes()

    assert run([outcomes]) == run([outcomes[:cut], outcomes[cut:]])
    assert run([outcomes]) == run([[outcome] for outcome in outcomes])


def test_the_aim_is_below_the_ceiling() -> None:
    assert AIM < 1.0


def test_a_surprise_does_not_drive_requests_off_the_arm_that_fits() -> None:
    pace, planned = new(), plan(ceiling=CEILING)
    for step in range(100):
        charge(pace, expected_usd=0.8 * CEILING, now_ms=step, planned_usd=0.8 * CEILING)
        correct(pace, delta_usd=0.0, expected_usd=0.8 * CEILING)
    charge(pace, expected_usd=15 * CEILING, now_ms=100, planned_usd=0.8 * CEILING)
    correct(pace, delta_usd=120 * CEILING, expected_usd=15 * CEILING)
    arms = np.array([0.1, 0.8, 15.0]) * CEILING
    # A long request: this call is above the ceiling although the arm is below it.
    cost = np.array([0.2, 1.6, 30.0]) * CEILING
    standing, cheapest = standing_of(pace, planned.per_request_usd), cost == cost.min()
    found = affordable(standing, cost, cheapest=cheapest, arm_cost_usd=arms)
    assert found.tolist() == [True, True, False]
    assert affordable(standing, cost, cheapest=cheapest).tolist() == [True, False, False]


def test_what_is_held_for_calls_in_flight_lowers_the_target_by_a_quarter_at_most() -> None:
    pace, planned = new(), plan(ceiling=CEILING)
    for step in range(200):
        charge(pace, expected_usd=0.8 * CEILING, now_ms=step)
    saved = float(target_usd(pace, planned, now_ms=200)[0])
    # One answer ten times as long as expected, and forty such calls still open.
    for _ in range(40):
        charge(pace, expected_usd=15 * CEILING, now_ms=200)
    correct(pace, delta_usd=135 * CEILING, expected_usd=15 * CEILING)
    pace["spent_nanousd"] = np.rint(AIM * CEILING * pace["requests"] * NANO_PER_USD)
    target = float(target_usd(pace, planned, now_ms=201)[0])
    assert saved > 0.9 * CEILING
    assert target == pytest.approx((AIM - HELD_MOST * AIM) * CEILING, rel=0.01)
