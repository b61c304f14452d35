"""Many paths at once get the numbers that they would get one by one."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from policy.paths import Paths

NAMES = [f"b{number}" for number in range(12)]
PATHS = st.lists(st.sampled_from(NAMES), max_size=6).map(" ".join)


def paths() -> Paths:
    """Return paths over budgets that are numbered in the order of their first use."""
    indices: dict[str, int] = {}
    return Paths(lambda name: indices.setdefault(name, len(indices)))


@given(st.lists(st.lists(PATHS, max_size=90), max_size=4))
def test_many_at_once_are_numbered_as_one_by_one(groups: list[list[str]]) -> None:
    at_once, one_by_one = paths(), paths()
    for group in groups:
        assert at_once.numbers(group) == [one_by_one.number(names) for names in group]
    assert at_once.texts == one_by_one.texts
    every = np.arange(len(at_once.texts))
    for number in every.tolist():
        assert at_once.members(number) == one_by_one.members(number)
    assert (at_once.depths(every) == one_by_one.depths(every)).all()
    found, expected = at_once.pairs(every), one_by_one.pairs(every)
    for name in ("budgets", "budget", "row", "place", "starts"):
        assert (getattr(found, name) == getattr(expected, name)).all()
