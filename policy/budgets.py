"""Budgets of one partition: hard caps by reservation over the whole path, and pacing state.

Laws of this module, held by properties in the tests:

- ``reserve`` succeeds only if ``reserved + settled + amount <= limit`` on every budget of the path.
- A reservation ends once: settled, or expired as spent and later corrected.
- A window's amounts belong to the window in which the request was decided; when a new window has
  begun, what still settles from the former one does not touch it.

Budgets lie in pages of ``PAGE`` for checkpoints; every change passes the page's gate, so that a
log can be folded over a page that already holds a part of it (``policy.pages``).
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

import msgspec
import numpy as np

from policy.calendar import window_end_ms, window_start_ms
from policy.catalog import BudgetSpec, Catalog
from policy.money import NANO_PER_USD
from policy.pacer import Pace, Plan, charge, correct, roll
from policy.pages import Gate, PageKey

PAGE = 128
"""Budgets in one page."""

Path = tuple[int, ...]
"""The budgets of a request, root first, as indices into the columns."""


class Budgets:
    """The budget tree of one partition, in columns."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._index: dict[str, int] = {}
        self._paths: dict[str, Path] = {}
        self._named: dict[str, Path] = {}
        self._pages: list[PageKey] = []
        self._specs: Mapping[str, BudgetSpec] = {}
        self.names: list[str] = []
        self.limit: list[int] = []
        self.reserved: list[int] = []
        self.settled: list[int] = []
        self.window_start: list[int] = []
        self.window_end: list[int] = []
        self.paces: list[Pace] = []
        self._journal: list[tuple[int, int, int, int, int, bytes]] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def set_catalog(self, catalog: Catalog) -> None:
        """Take limits and windows from the catalog; amounts stay as they are."""
        self._specs = catalog.budgets
        self._paths.clear()
        for name, index in self._index.items():
            spec = self._specs.get(name)
            self.limit[index] = spec.limit_nanousd if spec else 0

    def path(self, budget: str) -> Path:
        """Return the budgets declared now on this path, root first; empty if itself is not."""
        found = self._paths.get(budget)
        if found is None:
            parts = budget.split("/") if budget in self._specs else []
            names = ("/".join(parts[: depth + 1]) for depth in range(len(parts)))
            found = tuple(self._ensure(name) for name in names if name in self._specs)
            self._paths[budget] = found
        return found

    def named(self, names: str) -> Path:
        """Return the budgets with these names, separated by spaces, whatever is declared now.

        A decision is settled on the budgets on which it was reserved, also when one was declared
        or removed since.
        """
        found = self._named.get(names)
        if found is None:
            found = self._named[names] = tuple(self._ensure(name) for name in names.split())
        return found

    def _ensure(self, name: str) -> int:
        index = self._index.get(name)
        if index is None:
            index = self._append(name)
        return index

    def _append(self, name: str) -> int:
        index = len(self.names)
        if name:
            self._index[name] = index
        spec = self._specs.get(name)
        self.names.append(name)
        self.limit.append(spec.limit_nanousd if spec else 0)
        self.reserved.append(0)
        self.settled.append(0)
        self.window_start.append(-1)
        self.window_end.append(-1)
        self.paces.append(Pace())
        self._pages.append(("budget", index // PAGE))
        return index

    def roll(self, path: Path, now_ms: int) -> None:
        """Begin the window that holds ``now_ms`` on the budgets where it has not begun."""
        for index in path:
            if now_ms >= self.window_end[index]:
                self._begin_window(index, now_ms)

    def _begin_window(self, index: int, now_ms: int) -> None:
        self._note(index)
        spec = self._specs.get(self.names[index])
        window = spec.window if spec else "total"
        start, end = window_start_ms(window, now_ms), window_end_ms(window, now_ms)
        self.window_start[index], self.window_end[index] = start, end
        self.reserved[index] = self.settled[index] = 0
        roll(self.paces[index], window_start_ms=start, window_end_ms=end)

    def begin_journal(self) -> None:
        """Keep what changes from here on, until :meth:`end_journal`."""
        self._journal = []

    def journal_length(self) -> int:
        """Return how many changes the journal holds."""
        return len(self._journal or ())

    def end_journal(self, *, undo_from: int | None = None, keep: Container[int] = ()) -> None:
        """Take back the changes from ``undo_from`` on, except to the budgets in ``keep``."""
        journal, self._journal = self._journal or [], None
        if undo_from is None:
            return
        for index, reserved, settled, start, end, pacing in reversed(journal[undo_from:]):
            if index not in keep:
                self.reserved[index], self.settled[index] = reserved, settled
                self.window_start[index], self.window_end[index] = start, end
                self.paces[index] = Pace.unpack(pacing)

    def _note(self, index: int) -> None:
        if self._journal is not None:
            self._journal.append((
                index, self.reserved[index], self.settled[index], self.window_start[index],
                self.window_end[index], self.paces[index].pack(),
            ))  # fmt: skip

    def free(self, path: Path) -> int:
        """Return what may be reserved on the path now."""
        return min([self.limit[i] - self.reserved[i] - self.settled[i] for i in path])

    def ultimate(self, path: Path) -> int:
        """Return what may be reserved once everything in flight has settled at nothing."""
        return min([self.limit[i] - self.settled[i] for i in path])

    def take(
        self,
        path: Path,
        *,
        reserved: int,
        expected_nanousd: int,
        dual_price: Sequence[float],
        planned_usd: Sequence[float],
        now_ms: int,
    ) -> None:
        """Hold what a decision reserves on every budget of the path, and tell the pacers of it.

        The caller has checked :meth:`free`; the two sequences have one number per budget.
        """
        self.roll(path, now_ms)
        expected_usd = expected_nanousd / NANO_PER_USD
        for index, price, planned in zip(path, dual_price, planned_usd, strict=True):
            if self._gate.passes(self._pages[index]):
                self.reserved[index] += reserved
                charge(
                    self.paces[index],
                    expected_usd=expected_usd,
                    now_ms=now_ms,
                    dual_price=price,
                    planned_usd=planned,
                )

    def settle(
        self, path: Path, *, decided_ms: int, held: int, spent: int, delta_nanousd: int,
        expected_nanousd: int, now_ms: int,
    ) -> None:  # fmt: skip
        """Release ``held`` from what is reserved and add ``spent`` to what is settled.

        Settlement releases the reservation and spends the cost; expiry releases it and spends all
        of it; a late true-up releases nothing and spends the (negative) difference.
        ``delta_nanousd`` corrects the pacer.
        """
        # A fold rolls where the log's time says so, wherever the live state rolled before.
        self.roll(path, now_ms)
        for index in path:
            if decided_ms < self.window_start[index] or not self._gate.passes(self._pages[index]):
                continue
            self._note(index)
            self.reserved[index] -= held
            self.settled[index] += spent
            correct(
                self.paces[index],
                delta_usd=delta_nanousd / NANO_PER_USD,
                expected_usd=expected_nanousd / NANO_PER_USD,
                now_ms=now_ms,
            )

    def plan(self, indices: Sequence[int]) -> Plan:
        """Return the pacer's plan for these budgets."""
        specs = [self._specs.get(self.names[i]) for i in indices]
        per_request = [
            np.nan if s is None or s.per_request_nanousd is None
            else s.per_request_nanousd / NANO_PER_USD
            for s in specs
        ]  # fmt: skip
        return Plan(
            limit_usd=np.array([self.limit[i] / NANO_PER_USD for i in indices]),
            window_start_ms=np.array([self.window_start[i] for i in indices], np.int64),
            window_end_ms=np.array([self.window_end[i] for i in indices], np.int64),
            per_request_usd=np.array(per_request, np.float64),
            paced=np.array([s is not None and s.paced for s in specs], np.bool_),
            pid=np.array([s is not None and s.controller == "pid" for s in specs], np.bool_),
        )

    def dump_page(self, number: int) -> bytes:
        """Return one page as bytes."""
        part = slice(number * PAGE, min((number + 1) * PAGE, len(self.names)))
        columns = (self.names, self.reserved, self.settled, self.window_start, self.window_end)
        return msgspec.msgpack.encode(
            [c[part] for c in columns] + [[pace.pack() for pace in self.paces[part]]]
        )

    def load_page(self, number: int, data: bytes) -> None:
        """Put a page back, before any other change.

        A page before it may never have been written; its places stay empty, and the budgets that
        it had are placed anew while the log is folded.
        """
        names, reserved, settled, start, end, paces = msgspec.msgpack.decode(data)
        while len(self.names) < number * PAGE:
            self._append("")
        for name in names:
            self._append(name)
        part = slice(number * PAGE, number * PAGE + len(names))
        self.reserved[part], self.settled[part] = reserved, settled
        self.window_start[part], self.window_end[part] = start, end
        self.paces[part] = [Pace.unpack(packed) for packed in paces]

    def content(self) -> dict[str, tuple[int, int, int, int, bytes]]:
        """Return what is known of each budget that was ever used, wherever it is placed."""
        columns = zip(
            self.names, self.reserved, self.settled, self.window_start, self.window_end,
            strict=True,
        )  # fmt: skip
        return {
            name: (reserved, settled, start, end, self.paces[index].pack())
            for index, (name, reserved, settled, start, end) in enumerate(columns)
            if name and start >= 0
        }
