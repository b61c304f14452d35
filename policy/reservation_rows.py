"""A remembered decision as one row: what it holds, and what has become of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from policy.money import Price
from policy.terms import Bools, Ints

NONE = -1
ID_DTYPE = np.dtype("V16")
ROW_DTYPE = np.dtype(
    [
        ("used", "u1"),
        ("explored", "u1"),
        ("arm", "<i2"),
        ("segment", "<i2"),
        ("budgets", "<i4"),
        ("input_tokens", "<i4"),
        ("id", ID_DTYPE),
        ("request_print", "<u8"),
        ("usage_print", "<u8"),
        ("reward_print", "<u8"),
        ("usage_offset", "<i8"),
        ("reward_offset", "<i8"),
        ("error_offset", "<i8"),
        ("expired_by", "<i8"),
        ("reserved", "<i8"),
        ("expected", "<i8"),
        ("decided_ms", "<i8"),
        ("expires_ms", "<i8"),
        ("price_version", "<i8"),
        ("price_input", "<i8"),
        ("price_output", "<i8"),
        ("price_cached", "<i8"),
    ]
)
UNKNOWN_ROW = np.zeros(1, ROW_DTYPE)
UNKNOWN_ROW["arm"] = NONE


def blank_rows(prices: Sequence[Price | None]) -> NDArray[Any]:
    """Return a row for each of these prices, of which nothing else is known yet, shape (k + 1,).

    The last is that of a rejection.
    """
    rows = np.zeros(len(prices) + 1, ROW_DTYPE)
    rows["used"] = 1
    for name in ("usage_offset", "reward_offset", "error_offset", "expired_by", "price_cached"):
        rows[name] = NONE
    for row, price in enumerate(prices):
        if price is not None:
            rows["price_version"][row], rows["price_input"][row] = price.version, price.input
            rows["price_output"][row] = price.output
            rows["price_cached"][row] = NONE if price.cached is None else price.cached
    return rows


class Row(NamedTuple):
    """A remembered decision; amounts in nano-dollars, offsets ``NONE`` where nothing came yet."""

    used: int
    explored: int
    arm: int
    segment: int
    budgets: int
    input_tokens: int
    id: bytes
    request_print: int
    usage_print: int
    reward_print: int
    usage_offset: int
    reward_offset: int
    error_offset: int
    expired_by: int
    reserved: int
    expected: int
    decided_ms: int
    expires_ms: int
    price_version: int
    price_input: int
    price_output: int
    price_cached: int

    @property
    def is_open(self) -> bool:
        """Return whether the reservation is neither settled nor expired."""
        return self.arm != NONE and self.usage_offset == NONE and self.expired_by == NONE


def is_open(rows: NDArray[Any], places: Ints | slice = slice(None)) -> Bools:
    """Return which rows hold a reservation that is neither settled nor expired.

    With ``places`` it is asked of those rows only, without copying them.
    """
    spent = (rows["usage_offset"][places] != NONE) | (rows["expired_by"][places] != NONE)
    result: Bools = (rows["arm"][places] != NONE) & ~spent
    return result
