"""Budgets of one partition: hard caps by reservation over the whole path, and pacing state.

Laws of this module, held by properties in the tests:

- what is held was free before: ``reserved + settled + amount <= limit`` on every budget of a path.
- A reservation ends once: settled, or expired as spent and later corrected.
- A window's amounts belong to the window in which the request was decided; when a new window has
  begun, what still settles from the former one does not touch it.

Budgets are the rows of one table, in pages of ``PAGE`` for checkpoints; every change passes the
page's gate, so that a log can be folded over a page that already holds a part of it
(``policy.pages``). Which budgets a request is held on is its *path*, a small number.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from policy.calendar import window_end_ms, window_start_ms
from policy.catalog import Catalog
from policy.declared import Declared
from policy.journal import Journal
from policy.pace import PACER_DTYPE, Pacing, add_amounts, adder, charge, correct, hold, roll
from policy.pacer import Plan
from policy.pages import Gate
from policy.paths import Pairs, Paths
from policy.structured import put_rows, rows_at
from policy.terms import Bools, Floats, Ints

PAGE = 128
"""Budgets in one page."""

_AMOUNTS = [(n, "<i8") for n in ("reserved", "settled", "window_start", "window_end")]
BUDGET_DTYPE = np.dtype(_AMOUNTS + PACER_DTYPE.descr)


class Budgets:
    """The budget tree of one partition, in columns."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._index: dict[str, int] = {}
        self._leaves: dict[str, int] = {}
        self.names: list[str] = []
        self.paths = Paths(self._ensure)
        self._table: NDArray[Any] = np.zeros(0, BUDGET_DTYPE)
        self._declared = Declared()
        self.journal = Journal()

    def __len__(self) -> int:
        return len(self.names)

    # -- columns, shape (m,); what they show changes with the state

    @property
    def limit(self) -> Ints:
        """Return the limits in nano-dollars."""
        return self._declared.limit[: len(self.names)]

    @property
    def reserved(self) -> Ints:
        """Return what is held for calls in flight, in nano-dollars."""
        return self._column("reserved")

    @property
    def settled(self) -> Ints:
        """Return what is spent in the window, in nano-dollars."""
        return self._column("settled")

    @property
    def window_start(self) -> Ints:
        """Return when the windows began, in milliseconds; -1 for a budget never used."""
        return self._column("window_start")

    def _column(self, name: str) -> Ints:
        column: Ints = self._table[name][: len(self.names)]
        return column

    # -- which budgets there are

    def set_catalog(self, catalog: Catalog) -> None:
        """Take limits and windows from the catalog; amounts stay as they are."""
        self._leaves.clear()
        self._declared.set_specs(catalog.budgets, self.names)

    def path(self, budget: str) -> int:
        """Return the path of the budgets declared now, root first; 0 (none) if itself is not."""
        found = self._leaves.get(budget)
        if found is None:
            specs = self._declared.specs
            parts = budget.split("/") if budget in specs else []
            names = ("/".join(parts[: depth + 1]) for depth in range(len(parts)))
            found = self.paths.number(" ".join(name for name in names if name in specs))
            self._leaves[budget] = found
        return found

    def paths_of(self, budgets: Sequence[str]) -> Ints:
        """Return the path of each of these budgets, shape (n,)."""
        known = [self._leaves.get(budget) for budget in budgets]
        if None in known:
            known = [self.path(budget) for budget in budgets]
        return np.array(known, np.int64)

    def _ensure(self, name: str) -> int:
        index = self._index.get(name)
        return self._append(name) if index is None else index

    def _append(self, name: str) -> int:
        index = len(self.names)
        if index == len(self._table):
            self._grow(max(2 * index, PAGE))
        if name:
            self._index[name] = index
        self.names.append(name)
        self._declared.set_name(index, name)
        return index

    def _grow(self, size: int) -> None:
        old = len(self._table)
        grown = np.zeros(size, BUDGET_DTYPE)
        grown[:old] = self._table
        grown["window_start"][old:] = grown["window_end"][old:] = -1
        self._table = grown
        self._declared.grow(size)

    # -- windows

    def roll(self, budgets: Ints, now_ms: int) -> None:
        """Begin the window that holds ``now_ms`` on the budgets where it has not begun."""
        for index in budgets[now_ms >= self._table["window_end"][budgets]].tolist():
            self._begin_window(index, now_ms)

    def ended(self, budgets: Ints, now_ms: Ints) -> Bools:
        """Return whether the window of each budget has ended at its time; shapes (p,)."""
        result: Bools = now_ms >= self._table["window_end"][budgets]
        return result

    def _begin_window(self, index: int, now_ms: int) -> None:
        self.journal.note(index, self._table[index])
        window = self._declared.window(self.names[index])
        start, end = window_start_ms(window, now_ms), window_end_ms(window, now_ms)
        row = self._table[index : index + 1]
        row["window_start"], row["window_end"] = start, end
        row["reserved"] = row["settled"] = 0
        roll(self._table, index, window_start_ms=start, window_end_ms=end)

    def undo(self, *, undo_from: int, keep: Container[int] = ()) -> None:
        """End the journal and take back its changes from there on, except to these budgets."""
        for index, row in self.journal.end(undo_from, keep=keep):
            self._table[index] = row

    # -- money

    def free(self, path: int) -> int:
        """Return what may be reserved on the path now."""
        settled, reserved = self._table["settled"], self._table["reserved"]
        limit = self._declared.limit
        members = self.paths.members(path)
        return min([int(limit[i]) - int(reserved[i]) - int(settled[i]) for i in members])

    def ultimate(self, path: int) -> int:
        """Return what may be reserved once everything in flight has settled at nothing."""
        settled, limit = self._table["settled"], self._declared.limit
        return min([int(limit[i]) - int(settled[i]) for i in self.paths.members(path)])

    def hold(self, pairs: Pairs, *, reserved: Ints, expected_nanousd: Ints) -> None:
        """Hold what decisions reserve on every budget of their paths, at once.

        The caller has checked that it is free, and calls :meth:`charge` once the batch is done.

        Parameters
        ----------
        pairs : Pairs
        reserved, expected_nanousd : ndarray of int64, shape (n,)
            Of each request.
        """
        budget, row = self._passing(pairs)
        adder(budget)(self._table["reserved"], budget, reserved[row])
        hold(self._table, budget, expected_nanousd[row])

    def charge(
        self, pairs: Pairs, *, expected_nanousd: Ints, dual_price: Floats, planned_usd: Floats,
        now_ms: int,
    ) -> None:  # fmt: skip
        """Let the pacers follow a whole batch of decisions; see :func:`policy.pace.charge`.

        The last two arrays are of ``pairs.budgets``.
        """
        budgets = pairs.budgets
        passing = self._gate.passes_pages("budget", budgets // PAGE)
        requests = np.bincount(pairs.place, minlength=len(budgets))
        cost = np.zeros(len(budgets), np.int64)
        np.add.at(cost, pairs.place, expected_nanousd[pairs.row])
        # A budget of which all requests wait still is not charged.
        if passing is not None or np.count_nonzero(requests) < len(requests):
            kept = requests > 0 if passing is None else passing & (requests > 0)
            budgets, requests, cost = budgets[kept], requests[kept], cost[kept]
            dual_price, planned_usd = dual_price[kept], planned_usd[kept]
        rows = rows_at(self._table, budgets)
        charge(
            rows,
            requests=requests,
            cost_nanousd=cost,
            dual_price=dual_price,
            planned_usd=planned_usd,
            now_ms=now_ms,
        )
        put_rows(self._table, budgets, rows)

    def settle(
        self, pairs: Pairs, *, decided_ms: Ints, held: Ints, spent: Ints, delta_nanousd: Ints,
        expected_nanousd: Ints,
    ) -> None:  # fmt: skip
        """Release ``held`` from what is reserved and add ``spent`` to what is settled.

        Settlement releases the reservation and spends the cost; expiry releases it and spends all
        of it; a late true-up releases nothing and spends the (negative) difference.
        ``delta_nanousd`` corrects the pacer. All arrays are of shape (n,), one number for each
        call; the windows have been rolled.
        """
        budget, row = self._passing(pairs)
        # A call of a window that has ended does not touch the present one.
        mine = decided_ms[row] >= self._table["window_start"][budget]
        if np.count_nonzero(mine) < len(mine):
            budget, row = budget[mine], row[mine]
        if self.journal.open:
            for index in sorted(set(budget.tolist())):
                self.journal.note(index, self._table[index])
        adder(budget)(self._table["reserved"], budget, -held[row])
        add_amounts(self._table["settled"], budget, spent[row])
        correct(
            self._table,
            budget,
            delta_nanousd=delta_nanousd[row],
            expected_nanousd=expected_nanousd[row],
        )

    def _passing(self, pairs: Pairs) -> tuple[Ints, Ints]:
        """Return budget and row of those pairs whose page does not contain the change yet."""
        passing = self._gate.passes_pages("budget", pairs.budgets // PAGE)
        if passing is None:
            return pairs.budget, pairs.row
        kept = passing[pairs.place]
        return pairs.budget[kept], pairs.row[kept]

    # -- pacing

    def rows(self, budgets: Ints) -> Pacing:
        """Return a copy of the amounts and the pacing state of these budgets, shape (m,)."""
        return rows_at(self._table, budgets)

    def plan(self, budgets: Ints) -> Plan:
        """Return the pacer's plan for these budgets."""
        return self._declared.plan(
            budgets,
            window_start_ms=self._table["window_start"][budgets],
            window_end_ms=self._table["window_end"][budgets],
        )

    # -- pages

    def dump_page(self, number: int) -> bytes:
        """Return one page as bytes."""
        part = slice(number * PAGE, min((number + 1) * PAGE, len(self.names)))
        return msgspec.msgpack.encode([self.names[part], self._table[part].tobytes()])

    def load_page(self, number: int, data: bytes) -> None:
        """Put a page back, before any other change.

        A page before it may never have been written; its places stay empty, and the budgets that
        it had are placed anew while the log is folded.
        """
        names, rows = msgspec.msgpack.decode(data)
        while len(self.names) < number * PAGE:
            self._append("")
        first = len(self.names)
        while first + len(names) > len(self._table):
            self._grow(max(2 * len(self._table), PAGE))
        self._index.update((name, first + row) for row, name in enumerate(names) if name)
        self.names += names
        self._declared.set_names(first, names)
        part = slice(number * PAGE, number * PAGE + len(names))
        self._table[part] = np.frombuffer(rows, BUDGET_DTYPE)

    def content(self) -> dict[str, bytes]:
        """Return what is known of each budget that was ever used, wherever it is placed."""
        return {
            name: self._table[index].tobytes()
            for index, name in enumerate(self.names)
            if name and self._table["window_start"].item(index) >= 0
        }
