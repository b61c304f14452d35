"""The demo: its pure parts on tables of given and expected, and once the whole of it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from policy.calendar import window_start_ms
from policy.catalog import Catalog
from streams import topics
from streams.demo import plan
from streams.demo.budgets import (
    BURST_ROOT,
    PAYERS,
    TOTAL_ROOTS,
    budget_entries,
    knock_entries,
    roots,
    share_of,
)
from streams.demo.laws import Booked, Limit, check
from streams.demo.measures import Measures
from streams.demo.poison import bad_entry, bad_outcomes, bad_requests, contradictions
from streams.demo.recorded import read_arrivals_s, read_zeroeval
from streams.demo.references import make_world, references
from streams.demo.topic_log import Decided, TopicLog, Used
from streams.demo.view import bar
from streams.following import apply_entry
from streams.intake import Intake
from streams.records import (
    BadRecordError,
    BudgetPosition,
    Decision,
    Outcome,
    PolicyEntry,
    PriceTag,
    Request,
    Seen,
    Usage,
    decode_catalog,
    encode,
)
from tests.single import one_outcome, one_request

ROOT = Path(__file__).parent.parent
TIMES = plan.Times()


@pytest.fixture(scope="module")
def recorded():
    return read_zeroeval()


@pytest.fixture(scope="module")
def schedule(recorded):
    return plan.make_schedule(
        recorded, read_arrivals_s(), scale=plan.FAST, window_s=20, times=TIMES, seed=1
    )


class TestPlan:
    def test_the_data_are_there(self, recorded):
        assert (len(recorded), len(recorded.models), recorded.dimensions) == (2840, 27, 64)
        assert set(plan.ARMS) <= set(recorded.models)
        arrivals = read_arrivals_s()
        assert len(arrivals) == 19_366
        assert (np.diff(arrivals) >= 0).all()

    def test_the_same_seed_gives_the_same_run(self, recorded, schedule):
        again = plan.make_schedule(
            recorded, read_arrivals_s(), scale=plan.FAST, window_s=20, times=TIMES, seed=1
        )
        assert (again.prompt == schedule.prompt).all()
        assert (again.at_s == schedule.at_s).all()

    def test_arrivals_keep_their_rhythm(self, schedule):
        usual = schedule.at_s[~schedule.burst]
        recorded = read_arrivals_s()[: plan.FAST.requests]
        assert usual == pytest.approx(recorded * (schedule.duration_s / recorded[-1]), rel=1e-6)
        assert schedule.duration_s == 40.0

    def test_the_burst_multiplies_one_root(self, schedule):
        begin, end = TIMES.burst * schedule.duration_s, TIMES.burst_end * schedule.duration_s
        within = (schedule.at_s >= begin) & (schedule.at_s < end)
        of_root = np.array([PAYERS[p].root == BURST_ROOT for p in schedule.payer])
        assert (within & of_root)[schedule.burst].all()
        usual = (within & of_root & ~schedule.burst).sum()
        assert schedule.burst.sum() == (plan.FAST.burst_factor - 1) * usual > 100

    def test_a_cut_off_answer_is_wrong(self, recorded, schedule):
        truth = plan.make_truth(recorded, schedule)
        row, arm = (int(i[0]) for i in np.nonzero(truth.reward == 1.0))
        tokens = int(truth.tokens[row, arm])
        calm = {"dropped": False, "luck": 0.99}
        assert truth.answer(row, arm, output_cap=tokens, **calm) == (tokens, 1.0)
        assert truth.answer(row, arm, output_cap=tokens - 1, **calm) == (tokens - 1, 0.0)
        assert truth.answer(row, arm, output_cap=tokens, dropped=True, luck=0.99)[1] == 0.0
        assert truth.answer(row, arm, output_cap=tokens, dropped=True, luck=0.0)[1] == 1.0

    def test_the_first_window_begins_soon_and_whole(self):
        for after_ms in range(1_800_000_000_000, 1_800_000_040_000, 777):
            length, start_ms = plan.first_window(after_ms, plan.FAST.window_s)
            assert start_ms == window_start_ms(f"{length}s", start_ms)
            assert 0 <= start_ms - after_ms < 1_000 * max(plan.FAST.window_s)


class TestBudgets:
    def test_roots_share_all_money(self):
        entries = budget_entries(run_nanousd=10**9, requests=1_000, windows=2, window_s=20)
        of_run = {e.budget: e.limit_nanousd * (1 if e.window == "total" else 2) for e in entries}
        assert sum(of_run[root] for root in roots()) == pytest.approx(10**9)
        for path, amount in of_run.items():
            assert amount <= of_run[path.partition("/")[0]]
        assert {e.budget for e in entries if e.window == "total" and "/" not in e.budget} == (
            TOTAL_ROOTS
        )
        assert {p.budget for p in PAYERS} <= of_run.keys()
        assert sum(share_of(root) for root in roots()) == pytest.approx(1.0)
        assert len(roots()) >= 3

    def test_a_root_is_declared_before_the_key_that_is_knocked_at(self):
        seen = set()
        for entry in knock_entries():
            if "/" in entry.budget:
                assert entry.budget.partition("/")[0] in seen
            seen.add(entry.budget)
            assert entry.limit_nanousd == 0


def test_every_bad_record_is_refused_for_its_reason():
    catalog = apply_entry(Catalog(), PolicyEntry(dimensions=64, encoder="none"))
    for entry in budget_entries(run_nanousd=10**9, requests=9, windows=2, window_s=20):
        catalog = apply_entry(catalog, entry)
    good = Request(
        request_id="r", budget=PAYERS[0].budget, input_tokens=1, max_output_tokens=1,
        features=[0.5] * 64,
    )  # fmt: skip
    intake = Intake(catalog, None)
    assert one_request(intake, encode(good)).name == "r"
    for poison in bad_requests(good):
        with pytest.raises(BadRecordError) as caught:
            one_request(intake, poison.value, key=poison.key)
        assert caught.value.reason == poison.reason
    for poison in bad_outcomes(good.budget):
        with pytest.raises(BadRecordError) as caught:
            one_outcome(intake, poison.value, key=poison.key)
        assert caught.value.reason == poison.reason
    with pytest.raises(BadRecordError) as caught:
        apply_entry(catalog, decode_catalog(bad_entry().value))
    assert caught.value.reason == bad_entry().reason
    usage = Usage(prompt_tokens=1, completion_tokens=1)
    other, claim = contradictions(good, Outcome(request_id="r", usage=usage))
    assert one_request(intake, other.value).name == "r"
    assert one_outcome(intake, claim.value).output_tokens == 2


# -- the checker: a small run in which every law holds, and one change that breaks each

LIMIT = 1_000_000
PRICE = PriceTag(version=1, input=0, output=1_000)


def decision(number: int, *, outcomes: int, reserved: int, settled: int, **changes) -> Decided:
    record = Decision(
        decision_id=f"d{number}",
        request_id=f"r{number}",
        budget="acme/k",
        decided_ms=1_000 + number,
        expires_ms=50_000,
        offsets=Seen(request=number, batch=number, outcomes=outcomes, catalog=1, statistics=0),
        arm="a",
        max_output_tokens=100,
        reserved_nanousd=100,
        price=PRICE,
        budgets=[BudgetPosition("acme", 0, LIMIT, reserved, settled, 0.0, 0.0)],
    )
    for name, value in changes.items():
        setattr(record, name, value)
    return Decided(partition=0, offset=number, record=record)


def small_run() -> tuple[TopicLog, list[Booked], list[Limit]]:
    log = TopicLog()
    log.requests = {f"r{n}": [(topics.REQUESTS, 0, n)] for n in range(3)}
    log.decisions = [
        decision(0, outcomes=0, reserved=100, settled=0),
        decision(1, outcomes=0, reserved=200, settled=0),
        decision(2, outcomes=1, reserved=200, settled=30),
    ]
    usage = Usage(prompt_tokens=5, completion_tokens=30)
    outcome = Outcome(request_id="r0", usage=usage)
    log.usage = {"r0": Used(partition=0, offset=0, outcome=outcome)}
    booked = [
        Booked(request_id="r0", budget="acme/k", decided_ms=1_000,
               amounts={"reserve": 100, "settle": 30, "release": 70}),
        Booked(request_id="r1", budget="acme/k", decided_ms=1_001, amounts={"reserve": 100}),
        Booked(request_id="r2", budget="acme/k", decided_ms=1_002, amounts={"reserve": 100}),
    ]  # fmt: skip
    return log, booked, [Limit(budget="acme", limit_nanousd=LIMIT, window="total")]


def verdict_of(log, booked, limits, poison=()):
    return check(log, booked, limits, sent=["r0", "r1", "r2"], poison=poison)


class TestLaws:
    def test_a_good_run_breaks_none(self):
        verdict = verdict_of(*small_run())
        assert verdict.findings == []
        assert verdict.ok
        assert (verdict.requests, verdict.decisions, verdict.positions) == (3, 3, 3)

    def test_a_request_without_a_decision_is_lost(self):
        log, booked, limits = small_run()
        del log.decisions[1]
        verdict = verdict_of(log, booked, limits)
        assert verdict.lost >= 1
        assert "request r1 has no decision" in verdict.findings

    def test_a_request_that_never_reached_its_topic_is_lost(self):
        log, booked, limits = small_run()
        verdict = check(log, booked, limits, sent=["r9"], poison=())
        assert verdict.lost == 1

    def test_an_equal_copy_is_counted_and_another_arm_is_doubled(self):
        log, booked, limits = small_run()
        copy = replace(log.decisions[2], offset=3)
        log.decisions.append(copy)
        verdict = verdict_of(log, booked, limits)
        assert (verdict.ok, verdict.copies) == (True, 1)
        other = decision(2, outcomes=1, reserved=200, settled=30, arm="b")
        log.decisions[-1] = replace(other, offset=3)
        assert verdict_of(log, booked, limits).doubled == 1

    @pytest.mark.parametrize(
        ("amounts", "lost", "doubled"),
        [
            pytest.param({"reserve": 100, "settle": 60}, 0, 1, id="booked-twice"),
            pytest.param({"reserve": 100}, 1, 0, id="not-booked"),
            pytest.param({}, 1, 0, id="no-reservation"),
        ],
    )
    def test_the_ledger_has_each_cost_once(self, amounts, lost, doubled):
        log, booked, limits = small_run()
        booked[0] = replace(booked[0], amounts=amounts)
        verdict = verdict_of(log, booked, limits)
        assert (verdict.lost, verdict.doubled) == (lost, doubled)

    def test_more_than_a_cap_is_overspent(self):
        log, booked, _ = small_run()
        tight = [Limit(budget="acme", limit_nanousd=29, window="total")]
        assert verdict_of(log, booked, tight).overspent_nanousd == 1
        elsewhere = [Limit(budget="acm", limit_nanousd=0, window="total")]
        assert verdict_of(log, booked, elsewhere).ok

    def test_more_reserved_than_the_limit_is_overspent(self):
        log, booked, limits = small_run()
        log.decisions[1] = decision(1, outcomes=0, reserved=LIMIT + 5, settled=0)
        assert verdict_of(log, booked, limits).overspent_nanousd == 5

    @pytest.mark.parametrize(
        ("settled", "lost", "doubled"),
        [pytest.param(60, 0, 1, id="twice"), pytest.param(0, 1, 0, id="forgotten")],
    )
    def test_the_worker_settled_each_outcome_once(self, settled, lost, doubled):
        log, booked, limits = small_run()
        log.decisions[2] = decision(2, outcomes=1, reserved=200, settled=settled)
        verdict = verdict_of(log, booked, limits)
        assert (verdict.lost, verdict.doubled) == (lost, doubled)

    def test_an_expired_reservation_counts_as_settled(self):
        log, booked, limits = small_run()
        log.decisions[1].record.expires_ms = 1_001
        log.decisions[2] = decision(2, outcomes=1, reserved=100, settled=130)
        assert verdict_of(log, booked, limits).ok

    def test_bad_records_have_one_dead_letter_and_good_ones_none(self):
        log, booked, limits = small_run()
        poison = bad_outcomes("acme/k")[:1]
        place = (topics.OUTCOMES, 0, 7)
        log.digests[topics.OUTCOMES, poison[0].sha256] = place
        assert "None, not undecodable" in verdict_of(log, booked, limits, poison).findings[0]
        log.letters[place], log.reasons[place] = 1, "undecodable"
        assert verdict_of(log, booked, limits, poison).ok
        log.letters[place] = 2
        assert not verdict_of(log, booked, limits, poison).ok
        log.letters[place] = 1
        log.letters[topics.REQUESTS, 0, 1], log.reasons[topics.REQUESTS, 0, 1] = 1, "range"
        assert not verdict_of(log, booked, limits, poison).ok


class TestMeasures:
    def make(self) -> Measures:
        return Measures(
            arms=("a", "b"), windows={"acme": "10s"}, duration_s=20.0, epoch_ms=1_800_000_000_000
        )

    def decided(self, number: int, arm: str | None = "a") -> Decision:
        record = decision(number, outcomes=0, reserved=100, settled=50).record
        record.arm = arm
        record.rejected = None if arm else "no_arm"
        record.budgets = [BudgetPosition("acme", 1_800_000_000_000, 200, 100, 50, 7.0, 0.0)]
        return record

    def test_latency_share_reward_and_budgets(self):
        measures = self.make()
        for number in range(4):
            measures.on_sent(f"r{number}", 1.0)
        measures.on_sent("r0", 1.5)
        measures.on_decision(self.decided(0), 1.1)
        measures.on_decision(self.decided(1, "b"), 1.1)
        measures.on_decision(self.decided(2), 1.3)
        measures.on_outcome("a", 0.5, 2.0)
        measures.on_outcome("a", 1.0, 2.0)
        measures.on_outcome("b", None, 2.0)
        shown = measures.snapshot(2.5)
        assert (shown.sent, shown.decided, shown.waiting, shown.settled) == (4, 3, 1, 3)
        assert shown.latency_p50_ms == pytest.approx(100.0)
        assert [(row.share, row.reward) for row in shown.arms] == [
            (pytest.approx(2 / 3), 0.75),
            (pytest.approx(1 / 3), None),
        ]
        (budget,) = shown.budgets
        assert (budget.plan_share, budget.dual_price) == (0.25, 7.0)
        assert measures.most_used(2.5) == "a"

    def test_a_new_window_begins_empty_and_old_traffic_is_forgotten(self):
        measures = self.make()
        measures.on_sent("r0", 1.0)
        measures.on_decision(self.decided(0), 1.1)
        (budget,) = measures.snapshot(11.0).budgets
        assert (budget.settled_nanousd, budget.reserved_nanousd) == (0, 0)
        assert measures.share("a", 11.0) == 0.0

    def test_a_rejection_is_an_answer(self):
        measures = self.make()
        measures.on_sent("r0", 1.0)
        measures.on_decision(self.decided(0, None), 1.1)
        shown = measures.snapshot(2.0)
        assert (shown.rejected, shown.decided, shown.waiting) == (1, 0, 0)


def test_references_know_the_phases(recorded, schedule):
    truth = plan.make_truth(recorded, schedule)
    prices = np.array(
        [(recorded.prices[c].input, recorded.prices[c].output) for c in plan.arms_of(recorded)]
    )
    arm = plan.ARMS.index(plan.PRICE_CUT_ARM)
    world = make_world(
        schedule, truth, prices, cut_s=8.0, drop_s=20.0, dropped_arm=plan.PRICE_CUT_ARM,
        run_nanousd=plan.MEAN_NANOUSD * plan.FAST.requests,
    )  # fmt: skip
    before, after = schedule.at_s < 8.0, schedule.at_s >= 20.0
    per_token = world.cost_usd[:, arm] / (truth.input_tokens + 5 * truth.tokens[:, arm])
    assert per_token[before] == pytest.approx(3e-6)
    assert per_token[~before] == pytest.approx(3e-6 / plan.PRICE_CUT)
    assert world.reward[after, arm].mean() < 0.5 * world.reward[before, arm].mean()
    lines = {line.name: line for line in references(world, seed=1)}
    best, oracle = lines["best fixed arm that fits"], lines["oracle within the budgets"]
    assert lines["cheapest arm"].reward < best.reward < oracle.reward <= 1.0
    assert max(best.spent_usd, oracle.spent_usd) <= world.money_usd.sum()


@pytest.mark.parametrize(
    ("spent", "reserved", "plan_share", "expected"),
    [
        pytest.param(0.0, 0.0, None, "·" * 24, id="empty"),
        pytest.param(2.0, 1.0, None, "▓" * 24, id="over-full"),
        pytest.param(0.5, 0.25, 1.0, "▓" * 12 + "▒" * 6 + "·" * 5 + "│", id="plan-at-the-end"),
    ],
)
def test_bars(spent, reserved, plan_share, expected):
    assert bar(spent, reserved, plan_share) == expected


@pytest.mark.slow
@pytest.mark.kafka
@pytest.mark.postgres
def test_the_whole_demo(servers_root):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TOLLWAY_")}
    home = servers_root / "demo-home"
    done = subprocess.run(
        [sys.executable, "-m", "streams", "demo", "--fast"],
        env={**environment, "TOLLWAY_HOME": str(home)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
    told = done.stdout
    assert "lost 0, doubled 0, overspent $0" in told
    assert "it is what the topics say" in told
    assert "16 dead letters, of 16 bad records" in told
    assert re.search(r"worker-1 \(pid \d+\) killed with -9", told)
    for word in ("price cut:", "silent quality drop:", "burst over:", "Tollway", "oracle within"):
        assert word in told
    assert re.search(r"tollway explain demo-\d{5}", told)
