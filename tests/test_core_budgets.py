"""Budgets: windows, paths, and what a page holds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.budgets import PAGE, Budgets
from policy.catalog import BudgetSpec, Catalog
from policy.pages import Gate

NOW = 1_700_000_000_000
DAY = 86_400_000


def budgets(**specs: tuple[int, str]) -> Budgets:
    catalog = Catalog()
    for name, (limit, window) in specs.items():
        path = name.replace("_", "/")
        catalog = catalog.with_budget(
            BudgetSpec(budget=path, limit_nanousd=limit, window=window, paced=False)
        )
    result = Budgets(Gate.new())
    result.set_catalog(catalog)
    return result


def hold(found: Budgets, path: int, reserved: int, *, now_ms: int = NOW) -> None:
    pairs = found.paths.pairs(np.array([path]))
    found.roll(pairs.budgets, now_ms)
    amount, zeros = np.array([reserved]), np.zeros(len(pairs.budgets))
    found.hold(pairs, reserved=amount, expected_nanousd=amount)
    found.charge(pairs, expected_nanousd=amount, dual_price=zeros, planned_usd=zeros, now_ms=now_ms)


def settle(found: Budgets, path: int, *, held: int, spent: int, decided_ms: int = NOW,
           now_ms: int = NOW) -> None:  # fmt: skip
    pairs = found.paths.pairs(np.array([path]))
    found.roll(pairs.budgets, now_ms)
    found.settle(
        pairs, decided_ms=np.array([decided_ms]), held=np.array([held]), spent=np.array([spent]),
        delta_nanousd=np.zeros(1, np.int64), expected_nanousd=np.zeros(1, np.int64),
    )  # fmt: skip


def test_only_a_declared_budget_has_a_path_and_undeclared_parents_are_left_out() -> None:
    found = budgets(acme=(10, "day"), acme_team_key=(5, "day"))
    assert found.path("acme/team") == 0
    path = found.path("acme/team/key")
    assert [found.names[i] for i in found.paths.members(path)] == ["acme", "acme/team/key"]


def test_free_is_the_least_of_the_path_and_ultimate_what_settling_may_give_back() -> None:
    found = budgets(acme=(100, "total"), acme_key=(30, "total"))
    path = found.path("acme/key")
    hold(found, path, 20)
    assert (found.free(path), found.ultimate(path)) == (10, 30)
    settle(found, path, held=20, spent=7)
    assert (found.free(path), found.ultimate(path)) == (23, 23)
    assert found.free(found.path("acme")) == 93


@pytest.mark.parametrize(
    ("window", "after_ms", "rolled"),
    [
        pytest.param("hour", 3_600_000, True, id="hour"),
        pytest.param("day", DAY, True, id="day"),
        pytest.param("week", 7 * DAY, True, id="week"),
        pytest.param("month", 31 * DAY, True, id="month"),
        pytest.param("90s", 90_000, True, id="seconds"),
        pytest.param("total", 10_000 * DAY, False, id="total-never"),
        pytest.param("day", 1, False, id="within"),
    ],
)
def test_a_new_window_begins_with_nothing_reserved_or_settled(
    window: str, after_ms: int, *, rolled: bool
) -> None:
    found = budgets(acme=(100, window))
    path = found.path("acme")
    start = NOW - NOW % DAY
    hold(found, path, 40, now_ms=start)
    found.roll(np.array([0]), start + after_ms)
    assert found.reserved.tolist() == ([0] if rolled else [40])
    settle(found, path, held=40, spent=40, decided_ms=start, now_ms=start + after_ms)
    assert found.settled.tolist() == ([0] if rolled else [40])
    assert found.reserved.tolist() == [0]


def test_a_removed_budget_has_no_money_left_and_keeps_what_was_spent() -> None:
    found = budgets(acme=(100, "total"))
    path = found.path("acme")
    hold(found, path, 40)
    found.set_catalog(Catalog())
    assert found.path("acme") == 0
    assert found.free(path) == -40
    settle(found, path, held=40, spent=15)
    assert found.settled.tolist() == [15]


def test_a_lowered_limit_leaves_nothing_free_and_refuses_nothing_already_held() -> None:
    found = budgets(acme=(100, "total"))
    path = found.path("acme")
    hold(found, path, 80)
    found.set_catalog(Catalog().with_budget(BudgetSpec(budget="acme", limit_nanousd=50)))
    assert (found.free(path), found.reserved.tolist()) == (-30, [80])


steps = st.lists(
    st.tuples(st.integers(0, 2 * PAGE), st.integers(1, 10**12), st.integers(0, 10**12)),
    max_size=30,
)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(steps=steps)
def test_pages_give_back_what_was_put_in(steps: list[tuple[int, int, int]]) -> None:
    catalog = Catalog()
    for number in range(2 * PAGE + 1):
        catalog = catalog.with_budget(BudgetSpec(budget=f"b{number}", limit_nanousd=10**18))
    gate = Gate.new()
    found = Budgets(gate)
    found.set_catalog(catalog)
    for number, reserved, spent in steps:
        path = found.path(f"b{number}")
        hold(found, path, reserved)
        settle(found, path, held=reserved, spent=spent)
    other = Budgets(Gate.new())
    other.set_catalog(catalog)
    for _, number in sorted(gate.dirty):
        other.load_page(int(number), found.dump_page(int(number)))
    assert other.content() == found.content()
    assert int(other.settled.sum()) == sum(step[2] for step in steps)
