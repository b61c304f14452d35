"""Sums of what comes before a request in its batch, on each of its budgets."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from policy.fitting import RunningSums

ENTRIES = st.lists(
    st.tuples(st.integers(0, 5), st.floats(0.0, 1e-3), st.integers(0, 10**12)), max_size=60
)


@given(ENTRIES)
def test_what_comes_before_an_entry_is_summed_and_never_negative(
    entries: list[tuple[int, float, int]],
) -> None:
    numbers = np.array([number for number, _, _ in entries], np.int64)
    usd = np.array([fraction for _, fraction, _ in entries], np.float64)
    whole = np.array([amount for _, _, amount in entries], np.int64)
    sums = RunningSums(numbers, 6)
    found, exact = sums.before(usd), sums.before(whole).tolist()
    assert (found >= 0.0).all()
    for place, number in enumerate(numbers.tolist()):
        earlier = numbers[:place] == number
        np.testing.assert_allclose(found[place], usd[:place][earlier].sum(), atol=1e-15)
        assert exact[place] == whole[:place][earlier].sum()


def test_rounding_makes_nothing_negative() -> None:
    """The square root of what is held for calls in flight is taken."""
    numbers, usd = np.array([0, 1]), np.array([1.0, 1e-17])
    sums = RunningSums(numbers.repeat(2), 2)
    values = np.array([1.0, 0.1, 1e-17, 0.3])
    assert (sums.of(values) - values < 0.0).any()
    assert (sums.before(values) >= 0.0).all()
    assert (RunningSums(numbers, 2).before(usd) == 0.0).all()
