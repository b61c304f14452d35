"""Texts by small numbers, as columns hold them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy.reservation_rows import NONE


class Names:
    """Texts by small numbers, in order of first use."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._numbers: dict[str, int] = {}

    def number(self, text: str) -> int:
        """Return the text's number; a new one if it has none."""
        found = self._numbers.get(text)
        if found is None:
            found = self._numbers[text] = len(self.texts)
            self.texts.append(text)
        return found

    def numbers(self, texts: Sequence[str]) -> list[int]:
        """Return :meth:`number` for each of these texts."""
        return [self.number(text) for text in texts]


def renumbered(column: NDArray[Any], old: Iterable[int], new: Sequence[int]) -> NDArray[Any]:
    """Return a column in which old numbers are replaced by the new ones, others by ``NONE``."""
    known = np.fromiter(old, np.int64)
    if not len(known):
        return np.full_like(column, NONE)
    order = known.argsort()
    place = order[known.searchsorted(column, sorter=order).clip(max=len(known) - 1)]
    result: NDArray[Any] = np.where(known[place] == column, np.array(new)[place], NONE)
    return result
