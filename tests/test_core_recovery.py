"""Whatever is killed, whichever pages were written: the log gives the same state back."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.digest import state_digest
from policy.pages import Position
from policy.state import Limits
from tests.core_machine import Machine, catalog, digest, incoming

steps = st.lists(
    st.one_of(
        st.tuples(st.just("decide"), st.integers(1, 4), st.integers(0, 400)),
        st.tuples(st.just("settle"), st.integers(0, 30), st.integers(0, 3)),
        st.tuples(st.just("flush"), st.none(), st.none()),
        st.tuples(st.just("torn"), st.integers(0, 6), st.none()),
        st.tuples(st.just("crash"), st.none(), st.none()),
        st.tuples(st.just("wake"), st.integers(0, 9), st.none()),
    ),
    max_size=40,
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    steps=steps,
    limit=st.sampled_from([60_000, 400_000, 10**8]),
    deferred_max=st.sampled_from([2, 10_000]),
)
def test_the_log_gives_the_same_state_back(
    steps: list[tuple], limit: int, deferred_max: int
) -> None:
    limits = Limits(reservation_ttl_ms=500, defer_ms=300, deferred_max=deferred_max)
    live_through(Machine(catalog(limit=limit, window="1s"), limits=limits), steps)


SPANNING = {
    "port": {"budget.small": 0.0005, "budget.large": 0.003, "resolve": 4, "horizon": 60,
             "sample": 8, "history": 4},
    "stageroute": {"horizon": 24, "stages": 8, "arms_max": 1, "ceiling": 0.0002},
    "knn-cost": {"history": 4},
    "pareto": {},
}  # fmt: skip
"""Policies that come with the product, and options with which much happens in a few decisions."""


@pytest.mark.parametrize("policy", SPANNING)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(steps=steps)
def test_what_spans_arms_comes_back_too(policy: str, steps: list[tuple]) -> None:
    options = SPANNING[policy]
    limits = Limits(reservation_ttl_ms=500, defer_ms=300)
    machine = Machine(catalog(limit=10**8, window="1s", policy=policy, **options), limits=limits)
    live_through(machine, steps)


def live_through(machine: Machine, steps: list[tuple]) -> None:
    """Let all of this happen; whatever is killed, the state comes back byte for byte."""
    now = 1_000_000
    for kind, count, amount in steps:
        if kind == "decide":
            now += amount
            first = machine.requests
            machine.requests += count
            budgets = ["acme/team/a", "acme/team/b"]
            machine.decide(
                [incoming(n, at_ms=now, offset=n, budget=budgets[n % 2])
                 for n in range(first, first + count)],
                now_ms=now,
            )  # fmt: skip
        elif kind == "settle":
            now += 20 * amount
            reward = 0.5 if amount % 2 else None
            machine.settle(
                id=digest(count), at_ms=now, reward=reward, reward_print=amount, input_tokens=50,
                output_tokens=40 + amount if amount else None, usage_print=amount, latency_ms=9,
            )  # fmt: skip
        elif kind == "flush":
            machine.flush()
        elif kind == "torn":
            machine.flush(only=count)
        else:
            live, digest_before = machine.content(), state_digest(machine.state)
            if kind == "crash":
                machine.crash()
            else:
                machine.crash_and_wake(count)
            assert machine.content() == live
            assert state_digest(machine.state) == digest_before
        budgets = machine.state.budgets
        for index in range(len(budgets)):
            assert budgets.reserved[index] >= 0
            overrun = 0  # usage never exceeds the bound here
            assert (
                budgets.reserved[index] + budgets.settled[index] <= budgets.limit[index] + overrun
            )
    assert machine.content(machine.recovered({}, Position())) == machine.content()
    assert machine.content(machine.decided_again()) == machine.content()
