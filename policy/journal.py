"""What rows of a table were before they changed, so that the changes can be taken back."""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import Any


class Journal:
    """Former rows, while it is open; without that nothing is kept."""

    def __init__(self) -> None:
        self.open = False
        self._rows: list[tuple[int, Any]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def begin(self) -> None:
        """Keep what changes from here on, until :meth:`end`."""
        self.open, self._rows = True, []

    def note(self, index: int, row: Any) -> None:
        """Keep a row that is about to change."""
        if self.open:
            self._rows.append((index, row.copy()))

    def end(self, undo_from: int, *, keep: Container[int]) -> Iterator[tuple[int, Any]]:
        """Return the rows to be put back, in this order: of changes from ``undo_from`` on.

        But for those with an index in ``keep``.
        """
        rows, self._rows, self.open = self._rows, [], False
        return ((index, row) for index, row in reversed(rows[undo_from:]) if index not in keep)
