"""What the catalog says of the budgets of one partition, in columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy.catalog import BudgetSpec
from policy.money import NANO_PER_USD
from policy.pacer import Plan
from policy.structured import rows_at
from policy.terms import Ints

_DTYPE = np.dtype(
    [("limit", "<i8"), ("ceiling_usd", "<f8"), ("paced", np.bool_), ("pid", np.bool_)]
)


class Declared:
    """Limits and pacing of budgets by their numbers; a budget that is not declared has limit 0."""

    def __init__(self) -> None:
        self.specs: Mapping[str, BudgetSpec] = {}
        self._table: NDArray[Any] = np.zeros(0, _DTYPE)

    @property
    def limit(self) -> Ints:
        """Return the limits in nano-dollars; of more numbers than there are budgets."""
        limit: Ints = self._table["limit"]
        return limit

    def set_specs(self, specs: Mapping[str, BudgetSpec], names: Sequence[str]) -> None:
        """Take the budgets of a catalog; ``names`` are those that have numbers, in their order."""
        self.specs = specs
        if names:
            self.set_names(0, names)

    def set_name(self, index: int, name: str) -> None:
        """Let a number, which there is room for, be that of this budget."""
        self._table[index] = _row(self.specs.get(name))

    def set_names(self, first: int, names: Sequence[str]) -> None:
        """Let the numbers from ``first`` on, which there is room for, be those of these budgets."""
        rows = [_row(self.specs.get(name)) for name in names]
        self._table[first : first + len(names)] = rows

    def grow(self, size: int) -> None:
        """Make room for so many budgets."""
        grown = np.zeros(size, _DTYPE)
        grown[: len(self._table)] = self._table
        self._table = grown

    def window(self, name: str) -> str:
        """Return the window of a budget."""
        spec = self.specs.get(name)
        return spec.window if spec else "total"

    def plan(self, budgets: Ints, *, window_start_ms: Ints, window_end_ms: Ints) -> Plan:
        """Return the pacer's plan for budgets in these windows; arrays of shape (m,)."""
        rows = rows_at(self._table, budgets)
        return Plan(
            limit_usd=rows["limit"] / NANO_PER_USD,
            window_start_ms=window_start_ms,
            window_end_ms=window_end_ms,
            per_request_usd=rows["ceiling_usd"],
            paced=rows["paced"],
            pid=rows["pid"],
        )


def _row(spec: BudgetSpec | None) -> tuple[int, float, bool, bool]:
    if spec is None:
        return 0, np.nan, False, False
    ceiling = spec.per_request_nanousd
    return (
        spec.limit_nanousd,
        np.nan if ceiling is None else ceiling / NANO_PER_USD,
        spec.paced,
        spec.controller == "pid",
    )
