"""How the designs are judged: each kind of damage counts as what it is."""

from __future__ import annotations

import pytest

from tests.comparison_parts.judge import Call, Judgement, weigh
from tests.nemesis_parts.world import Root, World

PRICE = {"input": 1_000, "output": 2_000}
USAGE = {"prompt_tokens": 10, "completion_tokens": 20}
COST = 50
WORLD = World(
    roots=[Root(name="acme", weight=1.0, kind="tight", window="total")],
    budgets={"acme": (100, "total")},
)


def call(name: str) -> Call:
    return Call(request_id=name, budget="acme/team", arm="small", price=PRICE)


def refusal(name: str) -> Call:
    return Call(request_id=name, budget="acme/team")


@pytest.mark.parametrize(
    ("calls", "rows", "lost", "doubled", "overspent"),
    [
        pytest.param("ab", "ab", (0, 0), (0, 0), 0, id="all-is-well"),
        pytest.param("a", "a", (1, 0), (0, 0), 0, id="a-request-without-answer"),
        pytest.param("ab", "a", (0, 1), (0, 0), 0, id="a-cost-not-booked"),
        pytest.param("aab", "ab", (0, 0), (1, 0), 50, id="a-call-made-twice"),
        pytest.param("ab", "abb", (0, 0), (0, 1), 0, id="a-cost-booked-twice"),
    ],
)
def test_damage_is_counted(calls, rows, lost, doubled, overspent):
    reports = [{"request_id": name, "usage": USAGE} for name in "ab"]
    booked = [(name, COST) for name in rows]
    found = weigh("ab", map(call, calls), reports, booked, WORLD, first_counts=False)
    assert (found.lost_requests, found.lost_spend) == lost
    assert (found.doubled_calls, found.doubled_spend) == doubled
    assert (found.overspent_nanousd, found.limit_nanousd) == (overspent, 100)


def test_a_later_copy_is_no_call_where_readers_go_by_the_first():
    reports = [{"request_id": "a", "usage": USAGE}]
    found = weigh("a", map(call, "aa"), reports, [("a", COST)], WORLD, first_counts=True)
    assert found == Judgement(requests=1, limit_nanousd=100)


def test_a_refusal_costs_nothing():
    found = weigh("a", map(refusal, "a"), [], [], WORLD, first_counts=False)
    assert (found.lost, found.doubled) == (0, 0)
