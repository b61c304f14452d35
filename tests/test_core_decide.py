"""Deciding: caps by construction, waiting instead of refusing, prices pinned, budgets used up."""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.catalog import BudgetSpec, Catalog
from policy.decide import decide
from policy.money import Price, bound_nanousd, call_cost_nanousd
from policy.outcomes import Arrival
from policy.registry import POLICIES
from policy.settle import settle
from policy.state import Limits, State
from policy.terms import Arm, Settings
from policy.why_not import WHY_NOT
from tests.core_machine import DIMENSIONS, Machine, MeanPolicy, catalog, digest, incoming

NOW = 1_700_000_000_000
SMALL_BOUND = bound_nanousd(
    Price(version=1, input=100_000, output=200_000), input_tokens=50, output_tokens=100
)


def one_arm(limit: int, *, output: int = 200_000, **budget: object) -> Catalog:
    arm = Arm(arm="small", price=Price(version=1, input=100_000, output=output))
    spec = BudgetSpec(budget="acme", limit_nanousd=limit, window="total", paced=False, **budget)  # type: ignore[arg-type]
    return Catalog(settings=Settings(dimensions=DIMENSIONS)).with_arm(arm).with_budget(spec)


def ask(machine: Machine, count: int, *, now_ms: int, budget: str = "acme", **more: object) -> list:
    first = machine.requests
    machine.requests += count
    requests = [
        incoming(n, at_ms=now_ms, offset=n, budget=budget, **more)
        for n in range(first, first + count)
    ]
    return list(machine.decide(requests, now_ms=now_ms).choices)


actions = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(1, 16), st.sampled_from(["a", "b"])),
        st.tuples(st.just("settle"), st.integers(0, 63), st.integers(0, 300)),
        st.tuples(st.just("wait"), st.integers(1, 900), st.none()),
    ),
    min_size=5,
    max_size=60,
)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(actions=actions, limit=st.integers(20_000, 3_000_000), paced=st.booleans())
def test_no_interleaving_of_64_calls_in_flight_passes_a_cap(
    actions: list[tuple], limit: int, *, paced: bool
) -> None:
    machine = Machine(
        catalog(limit=limit, window="2s", paced=paced),
        limits=Limits(reservation_ttl_ms=700, defer_ms=300),
    )
    now, flight, overrun = NOW, [], Counter()
    for kind, number, detail in actions:
        budgets = machine.state.budgets
        if kind == "ask" and len(flight) < 64:
            choices = ask(machine, number, now_ms=now, budget=f"acme/team/{detail}")
            flight += [c for c in choices if c.arm is not None]
            for choice in choices:
                for name, start, cap, reserved, settled, *_ in choice.budgets:
                    if choice.arm is not None:
                        assert reserved + settled <= cap + overrun[name, start]
        elif kind == "settle" and flight:
            choice = flight.pop(number % len(flight))
            row = machine.state.reservations.row(
                machine.state.reservations.find(choice.request.id) or 0
            )
            machine.settle(
                id=choice.request.id, at_ms=now, input_tokens=50, output_tokens=detail,
                usage_print=detail,
            )  # fmt: skip
            cost = call_cost_nanousd(
                Price(version=1, input=row.price_input, output=row.price_output),
                input_tokens=50,
                output_tokens=detail,
            )
            # Only what was really spent past a reservation may pass a cap, and is seen.
            for index, name in enumerate(budgets.names):
                overrun[name, budgets.window_start[index]] += max(cost - row.reserved, 0)
        elif kind == "wait":
            now += number
        for index, name in enumerate(budgets.names):
            used = budgets.reserved[index] + budgets.settled[index]
            assert budgets.reserved[index] >= 0
            assert used <= budgets.limit[index] + overrun[name, budgets.window_start[index]]


def test_the_64th_call_in_flight_is_not_given_what_the_others_hold() -> None:
    machine = Machine(one_arm(63 * SMALL_BOUND))
    choices = ask(machine, 64, now_ms=NOW)
    assert [c.arm for c in choices] == ["small"] * 63
    assert len(machine.state.waiting) == 1
    for number in range(2):
        machine.settle(
            id=digest(number), at_ms=NOW, input_tokens=50, output_tokens=0, usage_print=1
        )
    (last,) = machine.decide([], now_ms=NOW + 1).choices
    assert last.request.id == digest(63)
    assert last.max_output_tokens == 100


def test_the_smallest_budget_of_the_path_decides() -> None:
    key = catalog(limit=10**9).with_budget(
        BudgetSpec(budget="acme/team/a", limit_nanousd=100_000, window="total")
    )
    more = {"budget": "acme/team/a", "arms": frozenset({"small"}), "max_output_tokens": 1_000}
    (choice,) = ask(Machine(key), 1, now_ms=NOW, **more)
    # The bound does not fit, what such a call is expected to need does.
    assert choice.arm == "small"
    assert 20 <= choice.max_output_tokens < 1_000
    assert choice.reserved_nanousd <= 100_000
    none = key.with_budget(BudgetSpec(budget="acme/team/a", limit_nanousd=5, window="total"))
    (choice,) = ask(Machine(none), 1, now_ms=NOW, budget="acme/team/a")
    assert choice.rejected == "budget_exhausted"


@pytest.mark.parametrize(
    ("arm", "why"),
    [
        pytest.param(Arm(arm="new", price=None), "unpriced", id="no-price"),
        pytest.param(
            Arm(arm="new", price=Price(version=1, input=1, output=1), deployed=False),
            "undeployed",
            id="undeployed",
        ),
    ],
)
def test_an_arm_that_may_not_be_used_is_never_chosen(arm: Arm, why: str) -> None:
    only = replace(one_arm(10**9), arms=(arm,))
    (choice,) = ask(Machine(only), 1, now_ms=NOW)
    assert (choice.arm, choice.rejected) == (None, "no_arm")
    both = Machine(one_arm(10**9).with_arm(arm))
    done = both.decide([incoming(n, at_ms=NOW, offset=n, budget="acme") for n in range(9)],
                       now_ms=NOW)  # fmt: skip
    assert {c.arm for c in done.choices} == {"small"}
    assert WHY_NOT[done.rounds.why_not[0][1]] == why


def test_a_call_is_settled_at_the_price_of_its_decision() -> None:
    machine = Machine(one_arm(10**9))
    (choice,) = ask(machine, 1, now_ms=NOW)
    dearer = Price(version=2, input=10**9, output=10**9)
    machine.catalog = machine.catalog.with_price("small", dearer)
    machine.state.set_catalog(machine.catalog)
    machine.settle(id=digest(0), at_ms=NOW, input_tokens=50, output_tokens=10, usage_print=1)
    assert choice.price == Price(version=1, input=100_000, output=200_000)
    assert machine.state.budgets.settled.tolist() == [
        call_cost_nanousd(choice.price, input_tokens=50, output_tokens=10)
    ]
    (choice,) = ask(machine, 1, now_ms=NOW + 1)
    assert choice.rejected == "budget_exhausted" or choice.price == dearer
    machine.catalog = machine.catalog.with_price("small", None)
    machine.state.set_catalog(machine.catalog)
    (choice,) = ask(machine, 1, now_ms=NOW + 2)
    assert choice.rejected == "no_arm"


def test_a_request_id_is_decided_once_and_another_content_is_a_conflict() -> None:
    machine = Machine(one_arm(10**9))
    first = incoming(1, at_ms=NOW, offset=0, budget="acme")
    again = incoming(1, at_ms=NOW, offset=1, budget="acme")
    other = incoming(1, at_ms=NOW, offset=2, budget="acme", print_=2)
    done = machine.decide([first, again, other], now_ms=NOW)
    assert [c.request.offset for c in done.choices] == [0]
    assert [r.offset for r in done.duplicates] == [1]
    assert [r.offset for r in done.conflicts] == [2]
    later = machine.decide([replace(again, offset=3)], now_ms=NOW + 1)
    assert (len(later.choices), len(later.duplicates)) == (0, 1)


def test_waiting_ends_with_a_lower_cap_not_with_a_refusal() -> None:
    limits = Limits(defer_ms=1_000, reservation_ttl_ms=60_000)
    machine = Machine(one_arm(40 * SMALL_BOUND), limits=limits)
    for number, _ in enumerate(ask(machine, 32, now_ms=NOW)):
        machine.settle(id=digest(number), at_ms=NOW, input_tokens=50, output_tokens=5,
                       usage_print=1)  # fmt: skip
    free = machine.state.budgets.free(machine.state.budgets.path("acme"))
    held = ask(machine, free // SMALL_BOUND, now_ms=NOW + 1)
    assert machine.state.budgets.free(machine.state.budgets.path("acme")) < SMALL_BOUND
    assert ask(machine, 1, now_ms=NOW + 2) == []
    assert len(machine.decide([], now_ms=NOW + 900).choices) == 0
    (choice,) = machine.decide([], now_ms=NOW + 1_002).choices
    assert choice.arm == "small"
    assert 5 <= choice.max_output_tokens < 100
    assert choice.request.offset == 32 + len(held)


def test_a_request_waits_no_longer_than_its_deadline() -> None:
    machine = Machine(one_arm(SMALL_BOUND), limits=Limits(defer_ms=10**6))
    ask(machine, 1, now_ms=NOW)
    assert ask(machine, 1, now_ms=NOW, deadline_ms=NOW + 500) == []
    (choice,) = machine.decide([], now_ms=NOW + 501).choices
    assert choice.rejected == "deadline"


def simulate(
    seed: int, *, flight: int, sigma: float, requests: int, arms: int, demand: float = 1.3
) -> tuple[State, list[str], int]:
    """Let calls arrive evenly, each about two seconds long, and return what came of them.

    Output caps are ten times the mean use; the budget is what ``requests`` truly cost.
    """
    rng = np.random.default_rng(seed)
    prices = [Price(version=1, input=1_000_000, output=4_000_000),
              Price(version=1, input=100_000, output=400_000)][:arms]  # fmt: skip
    total = int(requests * demand)
    mean, cap = 200, 2_000
    lengths = np.exp(sigma * rng.normal(size=total) - sigma**2 / 2) * mean
    outputs = np.clip(np.rint(lengths), 1, cap).astype(int).tolist()
    costs = [call_cost_nanousd(prices[0], input_tokens=50, output_tokens=o) for o in outputs]
    limit = int(np.mean(costs) * requests)
    given = Catalog(settings=Settings(dimensions=DIMENSIONS)).with_budget(
        BudgetSpec(budget="acme", limit_nanousd=limit, window="total", paced=False)
    )
    for number, price in enumerate(prices):
        given = given.with_arm(Arm(arm=f"arm-{number}", price=price))
    state = State(dimensions=DIMENSIONS, make_policy=MeanPolicy, catalog=given)
    calls: list[tuple[int, int, int]] = []
    refused: list[str] = []
    truncated = 0

    def take(choices: list, now_ms: int) -> None:
        nonlocal truncated
        for choice in choices:
            number = choice.request.offset
            if choice.arm is None:
                # What could still be spent would not cover 99 % of its answers.
                left = limit - state.budgets.settled[0]
                least = bound_nanousd(
                    prices[-1], input_tokens=50,
                    output_tokens=state.lengths_of(f"arm-{arms - 1}").quantile(0.99) or cap,
                )  # fmt: skip
                assert choice.rejected == "budget_exhausted"
                assert left < least
                refused.append(choice.rejected)
            else:
                used = min(outputs[number], choice.max_output_tokens)
                truncated += used < outputs[number]
                end = now_ms + int(2_000 * (0.5 + rng.random()))
                heapq.heappush(calls, (end, number, used))

    gap, sent, settled = 2_000 / flight, 0, 0
    now = NOW
    while sent < total or calls or state.waiting:
        arrival = NOW + int(sent * gap)
        if sent < total and (not calls or arrival <= calls[0][0]):
            now = max(now, arrival)
            request = incoming(sent, at_ms=now, offset=sent, budget="acme", max_output_tokens=cap)
            sent += 1
            take(decide(state, [request], now_ms=now).choices, now)
            continue
        if calls:
            end, number, used = heapq.heappop(calls)
            now = max(now, end)
            settle(state, Arrival(offset=settled, id=digest(number), at_ms=now, input_tokens=50,
                                  output_tokens=used, usage_print=1))  # fmt: skip
            settled += 1
        else:
            now += 1_000
        assert state.budgets.reserved[0] + state.budgets.settled[0] <= limit
        if state.waiting:
            take(decide(state, [], now_ms=now).choices, now)
    return state, refused, truncated


@pytest.mark.parametrize(
    ("flight", "sigma", "arms"),
    [
        pytest.param(50, 0.0, 1, id="50-in-flight-equal"),
        pytest.param(50, 0.5, 1, id="50-in-flight-lognormal"),
        pytest.param(200, 1.0, 1, id="200-in-flight-wide"),
    ],
)
def test_output_caps_ten_times_the_use_leave_no_budget_unused(
    flight: int, sigma: float, arms: int
) -> None:
    state, refused, truncated = simulate(1, flight=flight, sigma=sigma, requests=200, arms=arms)
    assert state.budgets.settled[0] >= 0.97 * state.budgets.limit[0]
    assert state.budgets.reserved[0] == 0
    assert refused
    assert truncated <= 3


def test_with_a_cheap_arm_beside_it_every_request_is_served() -> None:
    _, refused, _ = simulate(3, flight=200, sigma=0.5, requests=200, arms=2)
    assert refused == []


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_before_there_is_an_arm_requests_are_rejected_and_nothing_breaks(policy: str) -> None:
    full = catalog(policy=policy)
    machine = Machine(replace(full, arms=()))
    assert ask(machine, 0, now_ms=NOW) == []
    assert [choice.rejected for choice in ask(machine, 3, now_ms=NOW)] == ["no_arm"] * 3
    machine.state.set_catalog(full)
    assert {choice.rejected for choice in ask(machine, 3, now_ms=NOW + 1)} == {None}
