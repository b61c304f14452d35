"""Budgets and windows against plain lists, whatever is repeated and in whatever order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from policy.calendar import window_start_ms
from policy.pages import Gate
from policy.state import Limits
from policy.windows import PANE_MS, PANES, RewardWindows
from tests.core_machine import Machine, catalog, digest, incoming

TTL_MS, DEFER_MS, WINDOW = 700, 300, "2s"


@dataclass(slots=True)
class Call:
    """A decided request, as the plain list knows it."""

    name: str
    budgets: tuple[str, ...]
    decided_ms: int
    reserved: int
    price: tuple[int, int]
    cost: int | None = None
    usage: int | None = None
    reward: int | None = None
    expired: bool = False


class BudgetTree(RuleBasedStateMachine):
    """One partition; every amount is a sum over a list of calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[int, Call] = {}
        self.now_ms = 1_000_000

    @initialize(limit=st.sampled_from([30_000, 200_000, 10**7]))
    def begin(self, limit: int) -> None:
        limits = Limits(reservation_ttl_ms=TTL_MS, defer_ms=DEFER_MS)
        self.machine = Machine(catalog(limit=limit, window=WINDOW, paced=False), limits=limits)

    def _expire(self) -> None:
        for call in self.calls.values():
            late = self.machine.state.clock_ms > call.decided_ms + TTL_MS
            call.expired |= late and call.usage is None

    @rule(count=st.integers(1, 4), key=st.sampled_from("ab"), again=st.booleans())
    def ask(self, count: int, key: str, again: bool) -> None:
        first = self.machine.requests
        self.machine.requests += count
        batch = [
            incoming(n, at_ms=self.now_ms, offset=n, budget=f"acme/team/{key}")
            for n in range(first, first + count)
        ]
        # The same requests again, later in the same batch, have no second effect.
        self._take(self.machine.decide(batch * (2 if again else 1), now_ms=self.now_ms))

    @rule(number=st.integers(0, 30), print_=st.integers(1, 2))
    def ask_again(self, number: int, print_: int) -> None:
        if number not in self.calls:
            return
        request = incoming(number, at_ms=self.now_ms, offset=number, print_=print_)
        decided = self.machine.decide([request], now_ms=self.now_ms)
        assert len(decided.duplicates) == (print_ == 1)
        assert len(decided.conflicts) == (print_ == 2)
        self._take(decided)

    def _take(self, decided: object) -> None:
        for choice in decided.choices:  # type: ignore[attr-defined]
            number = choice.request.seed
            assert number not in self.calls, "decided twice"
            if choice.arm is not None:
                self.calls[number] = Call(
                    choice.arm, tuple(b[0] for b in choice.budgets), decided.now_ms,  # type: ignore[attr-defined]
                    choice.reserved_nanousd, (choice.price.input, choice.price.output),
                )  # fmt: skip
        self._expire()

    @rule(pick=st.integers(0, 40), tokens=st.none() | st.integers(0, 120),
          reward=st.none() | st.integers(0, 3))  # fmt: skip
    def report(self, pick: int, tokens: int | None, reward: int | None) -> None:
        if not self.calls or (tokens is None and reward is None):
            return
        number = list(self.calls)[pick % len(self.calls)]
        verdict = self.machine.settle(
            id=digest(number), at_ms=self.now_ms, input_tokens=None if tokens is None else 50,
            output_tokens=tokens, usage_print=tokens or 0,
            reward=None if reward is None else reward / 3, reward_print=reward or 0,
        )  # fmt: skip
        call = self.calls[number]
        self._expire()
        assert verdict.effect == told(call, tokens, reward)
        if tokens is not None and call.usage is None:
            price_in, price_out = call.price
            call.usage = tokens
            call.cost = -(-(50 * price_in + tokens * price_out) // 1_000)
        if reward is not None and call.reward is None:
            call.reward = reward

    @rule(ms=st.integers(1, 900))
    def wait(self, ms: int) -> None:
        self.now_ms += ms

    @rule(everything=st.booleans())
    def checkpoint_and_crash(self, everything: bool) -> None:
        self.machine.flush(only=None if everything else 2)
        self.machine.crash()

    @invariant()
    def sums_are_those_of_the_list(self) -> None:
        if not hasattr(self, "machine"):
            return
        budgets = self.machine.state.budgets
        for index, name in enumerate(budgets.names):
            start = int(budgets.window_start[index])
            mine = [c for c in self.calls.values() if name in c.budgets and c.decided_ms >= start]
            spent = [c.reserved if c.cost is None else c.cost for c in mine
                     if c.expired or c.cost is not None]  # fmt: skip
            held = [c.reserved for c in mine if not c.expired and c.cost is None]
            found = int(budgets.reserved[index]), int(budgets.settled[index])
            assert found == (sum(held), sum(spent)), name


def told(call: Call, tokens: int | None, reward: int | None) -> str:
    """Return what must become of a report, given what the call already knows."""
    parts = [(tokens, call.usage), (reward, call.reward)]
    if any(new is not None and known not in (None, new) for new, known in parts):
        return "refused"
    changes = any(new is not None and known is None for new, known in parts)
    return "applied" if changes else "duplicate"


TestBudgetTree = BudgetTree.TestCase
TestBudgetTree.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, derandomize=True
)


# -- copies


REPORTS = st.lists(
    st.tuples(st.integers(0, 4), st.none() | st.integers(0, 2), st.none() | st.integers(0, 2)),
    min_size=1, max_size=14,
)  # fmt: skip


@settings(max_examples=150, deadline=None, derandomize=True)
@given(reports=REPORTS, copies=st.lists(st.integers(0, 13), max_size=20), seed=st.randoms())
def test_only_the_first_of_each_report_counts(
    reports: list[tuple], copies: list[int], seed: object
) -> None:
    """Copies of reports, anywhere after the first, change neither money nor what is learned."""
    states = []
    for repeated in (False, True):
        machine = Machine(catalog())
        machine.decide([incoming(n, at_ms=1_000, offset=n) for n in range(5)], now_ms=1_000)
        order = list(reports)
        if repeated:
            for copy in copies:
                at = copy % len(reports)
                first = order.index(reports[at])
                order.insert(seed.randint(first + 1, len(order)), reports[at])  # type: ignore[attr-defined]
        for number, tokens, reward in order:
            machine.settle(
                id=digest(number), at_ms=1_000, input_tokens=None if tokens is None else 50,
                output_tokens=tokens, usage_print=tokens or 0,
                reward=None if reward is None else reward / 2, reward_print=reward or 0,
            )  # fmt: skip
        states.append(machine)
    once, again = states
    assert once.state.budgets.settled.tolist() == again.state.budgets.settled.tolist()
    assert once.state.budgets.reserved.tolist() == again.state.budgets.reserved.tolist()
    for arm in ("small", "large"):
        assert once.state.policy.dump(arm) == again.state.policy.dump(arm)


# -- windows


EVENTS = st.lists(
    st.tuples(
        st.integers(0, 3 * PANES * PANE_MS), st.none() | st.integers(0, 4),
        st.none() | st.integers(0, 10**6), st.booleans(),
    ),
    min_size=1, max_size=40,
)  # fmt: skip


@settings(max_examples=200, deadline=None, derandomize=True)
@given(events=EVENTS, cut=st.integers(0, 40), later=st.integers(0, PANES * PANE_MS))
def test_windows_hold_what_a_list_holds(events: list[tuple], cut: int, later: int) -> None:
    windows = RewardWindows(Gate.new())
    for part in (events[:cut], events[cut:]):
        if part:
            windows.add(
                "arm", "all",
                at_ms=np.array([e[0] for e in part], np.int64),
                reward=np.array([np.nan if e[1] is None else e[1] / 4 for e in part]),
                cost_nanousd=np.array([-1 if e[2] is None else e[2] for e in part], np.int64),
                latency_ms=np.array([-1 if e[2] is None else 7 for e in part], np.int64),
                error=np.array([e[3] for e in part]),
            )  # fmt: skip
    now_ms = max(e[0] for e in events) + later
    kept, newest = [], 0
    for event in events:
        pane = event[0] // PANE_MS
        newest = max(newest, pane)
        if pane > newest - PANES and pane > now_ms // PANE_MS - PANES:
            kept.append(event)
    found = windows.read("arm", now_ms=now_ms)
    costs = [e[2] for e in kept if e[2] is not None]
    rewards = [e[1] / 4 for e in kept if e[1] is not None]
    assert (found.calls, found.cost_nanousd) == (len(costs), sum(costs))
    assert (found.errors, found.rewards) == (sum(e[3] for e in kept), len(rewards))
    if rewards:
        assert found.reward_mean == pytest.approx(sum(rewards) / len(rewards))
    again = RewardWindows(Gate.new())
    again.load_page("arm all", windows.dump_page("arm all"))
    assert again.read("arm", now_ms=now_ms) == found


@given(at_ms=st.integers(0, 4 * 10**12), ms=st.integers(0, 10**7))
def test_a_later_instant_is_in_no_earlier_window(at_ms: int, ms: int) -> None:
    for window in ("hour", "day", "week", "month", "total", WINDOW):
        assert window_start_ms(window, at_ms) <= window_start_ms(window, at_ms + ms) <= at_ms + ms
