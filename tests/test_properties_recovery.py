"""Checkpoints that leave reservation pages for later, as workers write them, lose nothing."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from policy.pages import Position
from policy.state import Limits
from tests.core_machine import Machine, catalog, digest, incoming

NOW_MS = 1_000_000


def checkpoint(machine: Machine, *, everything: bool) -> None:
    """Write the dirty pages but those of reservations, then the position to fold from."""
    dirty = machine.state.gate.dirty
    for page in [p for p in dirty if everything or p[0] != "reservation"]:
        machine.tables[page] = machine.state.dump_page(page)
        del dirty[page]
    machine.kept = machine.state.low()


def report(machine: Machine, number: int, *, at_ms: int, tokens: int | None, reward: int) -> None:
    machine.settle(
        id=digest(number), at_ms=at_ms, input_tokens=50, output_tokens=tokens,
        usage_print=tokens or 0, reward=reward / 10, reward_print=reward, latency_ms=9,
    )  # fmt: skip


def test_an_outcome_before_its_decision_is_folded_with_it() -> None:
    machine = Machine(catalog())
    report(machine, 0, at_ms=NOW_MS, tokens=40, reward=5)
    machine.decide([incoming(0, at_ms=NOW_MS, offset=0)], now_ms=NOW_MS)
    checkpoint(machine, everything=False)
    live = machine.content()
    assert machine.kept == Position(0, 0, 0)
    machine.crash()
    assert machine.content() == live


steps = st.lists(
    st.one_of(
        st.tuples(st.just("decide"), st.integers(1, 3), st.integers(0, 400)),
        # Up to five requests ahead of those that were decided.
        st.tuples(st.just("settle"), st.integers(-6, 5), st.integers(0, 3)),
        st.tuples(st.just("checkpoint"), st.booleans(), st.none()),
        st.tuples(st.just("crash"), st.none(), st.none()),
    ),
    max_size=40,
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(steps=steps, limit=st.sampled_from([60_000, 400_000, 10**8]))
def test_what_came_early_survives_every_checkpoint(steps: list[tuple], limit: int) -> None:
    machine = Machine(
        catalog(limit=limit, window="1s"), limits=Limits(reservation_ttl_ms=500, defer_ms=300)
    )
    now = NOW_MS
    for kind, count, amount in steps:
        if kind == "decide":
            now += amount
            first = machine.requests
            machine.requests += count
            machine.decide(
                [incoming(n, at_ms=now, offset=n) for n in range(first, first + count)], now_ms=now
            )
        elif kind == "settle":
            now += 20 * amount
            tokens = 40 + amount if amount else None
            report(machine, max(machine.requests + count, 0), at_ms=now, tokens=tokens, reward=5)
        elif kind == "checkpoint":
            checkpoint(machine, everything=count)
        else:
            live = machine.content()
            machine.crash()
            assert machine.content() == live
    assert machine.content(machine.recovered({}, Position())) == machine.content()
