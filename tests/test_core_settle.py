"""Settling: once, at the true cost; expired as spent, trued up later; parked for a stated time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.acceptance import PARK_MS
from policy.money import BILL_MAX, Price, bound_nanousd, call_cost_nanousd
from policy.pace import TOTAL_MAX
from policy.pages import Gate, Position
from policy.paths import Paths
from policy.reservation_rows import ROW_DTYPE
from policy.reservations import Reservations
from policy.segments import SEGMENT
from policy.settle import overdue
from policy.state import Limits
from tests.core_machine import Machine, catalog, digest, incoming

NOW = 1_700_000_000_000
PRICE = Price(version=1, input=100_000, output=200_000)
BOUND = bound_nanousd(PRICE, input_tokens=50, output_tokens=100)
TTL = 1_000


def decided(*, window: str = "total", limit: int = 10**8, parked_max: int = 10_000) -> Machine:
    """Return a machine with one call of the small arm in flight."""
    limits = Limits(reservation_ttl_ms=TTL, parked_max=parked_max)
    machine = Machine(catalog(limit=limit, window=window, paced=False), limits=limits)
    small = frozenset({"small"})
    machine.decide([incoming(0, at_ms=NOW, offset=0, arms=small)], now_ms=NOW)
    return machine


def cost(output: int) -> int:
    return call_cost_nanousd(PRICE, input_tokens=50, output_tokens=output)


def used(machine: Machine) -> tuple[int, int]:
    """Return what the root has reserved and settled, having checked the path agrees."""
    budgets = machine.state.budgets
    path = budgets.paths.members(budgets.path("acme/team/a"))
    (found,) = {(budgets.reserved[i], budgets.settled[i]) for i in path}
    return found


def usage(machine: Machine, output: int, *, at_ms: int = NOW, number: int = 0) -> str:
    verdict = machine.settle(
        id=digest(number), at_ms=at_ms, input_tokens=50, output_tokens=output, usage_print=output
    )
    return f"{verdict.effect} {verdict.reason}".strip()


def test_a_settlement_releases_the_reservation_and_spends_the_true_cost() -> None:
    machine = decided()
    assert used(machine) == (BOUND, 0)
    assert usage(machine, 10) == "applied"
    assert used(machine) == (0, cost(10))


def test_the_same_usage_again_has_no_effect_and_another_is_a_conflict() -> None:
    machine = decided()
    assert [usage(machine, 10), usage(machine, 10), usage(machine, 11)] == [
        "applied", "duplicate", "refused conflict",
    ]  # fmt: skip
    assert used(machine) == (0, cost(10))


def test_the_bill_counts_before_the_tokens() -> None:
    machine = decided()
    verdict = machine.settle(
        id=digest(0), at_ms=NOW, input_tokens=50, output_tokens=10, cost_nanousd=77, usage_print=1
    )
    assert verdict.effect == "applied"
    assert used(machine) == (0, 77)


def test_what_costs_more_than_was_reserved_is_seen_as_overrun() -> None:
    machine = decided(limit=2 * BOUND)
    usage(machine, 1_000)
    assert used(machine) == (0, cost(1_000))
    assert machine.state.budgets.settled[0] > machine.state.budgets.limit[0]
    done = machine.decide([incoming(1, at_ms=NOW, offset=1)], now_ms=NOW)
    assert [c.rejected for c in done.choices] == ["budget_exhausted"]


def test_an_expired_reservation_is_spent_until_feedback_trues_it_up() -> None:
    machine = decided()
    machine.settle(id=digest(9), at_ms=NOW + TTL, reward=0.5)
    assert used(machine) == (BOUND, 0)
    machine.settle(id=digest(9), at_ms=NOW + TTL + 1, reward=0.5)
    assert used(machine) == (0, BOUND)
    assert usage(machine, 10, at_ms=NOW + 5 * TTL) == "applied"
    assert used(machine) == (0, cost(10))


def test_an_error_alone_settles_nothing() -> None:
    machine = decided()
    assert machine.settle(id=digest(0), at_ms=NOW, error=True).effect == "applied"
    assert machine.settle(id=digest(0), at_ms=NOW, error=True).effect == "duplicate"
    assert used(machine) == (BOUND, 0)


def test_what_settles_after_its_window_does_not_touch_the_next() -> None:
    machine = decided(window="10s")
    later = NOW + 10_000
    small = frozenset({"small"})
    machine.decide([incoming(1, at_ms=later, offset=1, arms=small)], now_ms=later)
    assert used(machine) == (BOUND, 0)
    usage(machine, 10, at_ms=later)
    assert used(machine) == (BOUND, 0)
    usage(machine, 20, at_ms=later, number=1)
    assert used(machine) == (0, cost(20))


def test_an_outcome_of_a_rejection_is_refused() -> None:
    machine = Machine(catalog(limit=10, paced=False))
    machine.decide([incoming(0, at_ms=NOW, offset=0)], now_ms=NOW)
    assert usage(machine, 10) == "refused rejected_request"


@pytest.mark.parametrize(
    ("waited_ms", "effects"),
    [
        pytest.param(PARK_MS, (["applied"], 0), id="in-time"),
        pytest.param(PARK_MS + 1, (["refused"], 0), id="too-late"),
    ],
)
def test_an_early_outcome_waits_for_its_decision(waited_ms: int, effects: tuple) -> None:
    machine = decided()
    assert usage(machine, 10, number=1) == "parked"
    late = NOW + waited_ms
    done = machine.decide([incoming(1, at_ms=late, offset=1)], now_ms=late)
    assert (
        [v.effect for _, v in done.released],
        len(overdue(machine.state, read_ms=late)),
    ) == effects


def test_a_parked_outcome_is_given_up_when_clock_and_requests_have_passed_its_time() -> None:
    machine = decided()
    assert usage(machine, 10, number=1) == "parked"
    late = NOW + PARK_MS + 1
    machine.settle(id=digest(0), at_ms=late - 1, reward=0.5)
    assert overdue(machine.state, read_ms=late) == []
    machine.settle(id=digest(0), at_ms=late, reward=0.5)
    assert overdue(machine.state, read_ms=late - 1) == []
    assert [a.offset for a in overdue(machine.state, read_ms=late)] == [0]
    assert overdue(machine.state, read_ms=late) == []


def test_a_parked_outcome_is_not_given_up_while_an_old_request_waits_for_money() -> None:
    machine = decided(limit=60_000)
    assert usage(machine, 10, number=1) == "parked"
    machine.decide([incoming(1, at_ms=NOW, offset=1, arms=frozenset({"small"}))], now_ms=NOW)
    assert machine.state.waiting
    late = NOW + PARK_MS + 1
    machine.settle(id=digest(0), at_ms=late, reward=0.5)
    assert overdue(machine.state, read_ms=late) == []


def test_parking_is_bounded_and_a_fold_parks_what_was_parked() -> None:
    machine = decided(parked_max=2)
    assert [usage(machine, 1, number=n) for n in (1, 2, 3)] == [
        "parked", "parked", "refused unknown_request",
    ]  # fmt: skip
    later = NOW + PARK_MS + 1
    # The worker has not asked for overdue ones; those two make room nevertheless.
    assert usage(machine, 1, at_ms=later, number=4) == "parked"
    machine.decide([incoming(n, at_ms=later, offset=n) for n in (3, 4)], now_ms=later)
    overdue(machine.state, read_ms=later)
    folded = machine.recovered({}, Position())
    assert machine.content(folded) == machine.content()
    assert folded.reservations.open_count == machine.state.reservations.open_count == 1


def test_copies_that_came_after_a_settlement_do_not_change_what_it_taught() -> None:
    machine = decided()
    machine.decide([incoming(n, at_ms=NOW, offset=n) for n in (1, 2)], now_ms=NOW)
    machine.settle(id=digest(0), at_ms=NOW, reward=0.5, reward_print=1)
    machine.flush()
    # A worker that was asleep wakes and writes what its successor has decided already.
    for original in machine.decisions[:3]:
        offset = len(machine.decisions)
        machine.decisions.append(replace(original, offset=offset, decided_ms=NOW + 1, batch=0))
    machine.crash()
    machine.decide([incoming(3, at_ms=NOW + 2, offset=3)], now_ms=NOW + 2)
    machine.settle(id=digest(1), at_ms=NOW + 2, reward=0.25, reward_print=1)
    assert machine.content(machine.recovered({}, Position())) == machine.content()


amounts = st.lists(st.integers(0, 10**15), min_size=1, max_size=4)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(bills=amounts, late=st.booleans())
def test_a_call_is_spent_once_at_the_first_bill(bills: list[int], *, late: bool) -> None:
    machine = decided()
    at_ms = NOW + (TTL + 1 if late else 0)
    effects = [
        machine.settle(id=digest(0), at_ms=at_ms, cost_nanousd=bill, usage_print=bill).effect
        for bill in bills
    ]
    assert used(machine) == (0, bills[0])
    wanted = ["duplicate" if bill == bills[0] else "refused" for bill in bills[1:]]
    assert effects == ["applied", *wanted]
    assert machine.state.reservations.open_count == 0


def test_absurd_bills_survive_a_checkpoint() -> None:
    machine = Machine(catalog(limit=10**18, paced=False))
    machine.decide([incoming(n, at_ms=NOW, offset=n) for n in range(5_000)], now_ms=NOW)
    bills = [{"id": digest(n), "at_ms": NOW, "cost_nanousd": BILL_MAX, "usage_print": 1}
             for n in range(5_000)]  # fmt: skip
    machine.settle_all(bills[:2_000])
    assert used(machine)[1] == 2_000 * BILL_MAX
    machine.settle_all(bills[2_000:])
    assert used(machine) == (0, TOTAL_MAX)
    live = machine.content()
    machine.flush()
    machine.crash()
    assert machine.content() == live


def test_a_budget_that_is_declared_while_a_call_is_in_flight_is_not_touched_by_it() -> None:
    machine = Machine(catalog(limit=10**9))
    declared = machine.catalog.without_budget("acme/team")
    machine.state.set_catalog(declared)
    machine.decide([incoming(1, at_ms=NOW, offset=0)], now_ms=NOW)
    machine.state.set_catalog(catalog(limit=10**9))
    machine.decide([incoming(2, at_ms=NOW, offset=1)], now_ms=NOW)
    budgets = machine.state.budgets
    held = {name: budgets.reserved[i] for i, name in enumerate(budgets.names)}
    bound = machine.decisions[0].choice.reserved_nanousd
    assert held == {"acme": 2 * bound, "acme/team/a": 2 * bound, "acme/team": bound}
    machine.settle(id=digest(1), at_ms=NOW, input_tokens=50, output_tokens=1, usage_print=1)
    machine.settle(id=digest(2), at_ms=NOW, input_tokens=50, output_tokens=1, usage_print=1)
    assert budgets.reserved.tolist() == [0, 0, 0]
    live = machine.content()
    machine.catalog = catalog(limit=10**9)
    machine.crash()
    assert machine.content() == live


def test_a_waiting_request_whose_budget_is_removed_is_rejected() -> None:
    machine = Machine(catalog(limit=60_000, paced=False))
    small = frozenset({"small"})
    first = machine.decide(
        [incoming(n, at_ms=NOW, offset=n, arms=small) for n in range(4)], now_ms=NOW
    )
    assert machine.state.waiting
    machine.state.set_catalog(machine.catalog.without_budget("acme/team/a"))
    later = machine.decide([], now_ms=NOW + 1)
    assert [c.rejected for c in later.choices] == ["unknown_budget"] * (4 - len(first.choices))
    assert not machine.state.waiting


@settings(max_examples=50, deadline=None)
@given(
    used=st.lists(st.integers(0, 2 * SEGMENT + 50), max_size=40, unique=True),
    asked=st.lists(st.integers(0, 2 * SEGMENT + 50), min_size=1, max_size=12),
    before=st.integers(0, 2 * SEGMENT + 60),
)
def test_few_and_many_are_told_the_same_of_what_was_decided_since(
    used: list[int], asked: list[int], before: int
) -> None:
    reservations = Reservations(Gate.new(), Paths(lambda name: 0), dimensions=1)
    rows = np.zeros(len(used), ROW_DTYPE)
    rows["used"] = 1
    ids = [number.to_bytes(16, "little") for number in range(len(used))]
    rows["id"] = np.frombuffer(b"".join(ids), "V16")
    places = np.array(sorted(used), np.int64)
    reservations.add(places, rows, ids, np.zeros((len(used), 1), np.float32))
    many = reservations.decided_since(np.array(asked * 5, np.int64), before=before)
    few = [reservations.decided_since(np.array([at]), before=before).item() for at in asked]
    assert many[: len(asked)].tolist() == few
    assert few == [sum(at <= offset < before for offset in used) for at in asked]
