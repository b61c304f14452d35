"""Paths: which budgets a request is held on, from the root down, by a small number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from policy.terms import Bools, Ints

DEPTH_MAX = 6
_FEW = 256


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pairs:
    """The requests of a batch with the budgets of their paths: one entry for each pair.

    Pairs lie in the order of the requests, and of one request from the root down.

    Parameters
    ----------
    budgets : ndarray of int64, shape (m,)
        The budgets of the batch, each once, ascending.
    budget, row, place : ndarray of int64, shape (p,)
        Index of the budget, row of the request, and index into ``budgets``.
    starts : ndarray of int64, shape (n + 1,)
        Where the pairs of each row begin.
    """

    budgets: Ints
    budget: Ints
    row: Ints
    place: Ints
    starts: Ints

    def between(self, first: int, last: int) -> Pairs:
        """Return the pairs of the rows from ``first`` to before ``last``; rows keep their number.

        Budgets keep their place, also those of which no pair is left.
        """
        if first == 0 and last == len(self.starts) - 1:
            return self
        part = slice(self.starts.item(first), self.starts.item(last))
        return Pairs(
            budgets=self.budgets,
            budget=self.budget[part],
            row=self.row[part],
            place=self.place[part],
            starts=self.starts[first : last + 1] - self.starts[first],
        )

    def where(self, kept: Bools) -> Pairs:
        """Return the pairs of the rows where ``kept`` is True; these rows are numbered anew."""
        mine = kept[self.row]
        depths = np.diff(self.starts)[kept]
        return Pairs(
            budgets=self.budgets,
            budget=self.budget[mine],
            row=(np.cumsum(kept) - 1)[self.row[mine]],
            place=self.place[mine],
            starts=np.concatenate([[0], np.cumsum(depths)]),
        )


class Paths:
    """The paths of one partition; a path is named by its budgets, separated by spaces."""

    def __init__(self, index_of: Callable[[str], int]) -> None:
        self._index_of = index_of
        self._numbers: dict[str, int] = {}
        self.texts: list[str] = []
        self._members: list[tuple[int, ...]] = []
        self._matrix: NDArray[np.int32] = np.full((64, DEPTH_MAX), -1, np.int32)
        self._depth: NDArray[np.int32] = np.zeros(64, np.int32)
        self.number("")

    def number(self, names: str) -> int:
        """Return the number of the path with these budgets; a new one if it has none."""
        found = self._numbers.get(names)
        return self._append(names) if found is None else found

    def _append(self, names: str) -> int:
        number = len(self.texts)
        members = tuple(self._index_of(name) for name in names.split())
        self._numbers[names] = number
        self.texts.append(names)
        self._members.append(members)
        if number == len(self._depth):
            self._grow()
        self._matrix[number, : len(members)] = members
        self._depth[number] = len(members)
        return number

    def numbers(self, names: Sequence[str]) -> list[int]:
        """Return :meth:`number` for each of these paths, in their order; many new ones at once."""
        new = [path for path in dict.fromkeys(names) if path not in self._numbers]
        if new:
            self._extend(new)
        return [self._numbers[path] for path in names]

    def _extend(self, names: Sequence[str]) -> None:
        first, index_of = len(self.texts), self._index_of
        members = [tuple([index_of(name) for name in path.split()]) for path in names]
        self._numbers.update(zip(names, range(first, first + len(names)), strict=True))
        self.texts += names
        self._members += members
        while len(self.texts) > len(self._depth):
            self._grow()
        depths = np.array([len(path) for path in members], np.int32)
        self._depth[first : first + len(names)] = depths
        rows = np.arange(first, first + len(names)).repeat(depths)
        within = np.arange(len(rows)) - (depths.cumsum() - depths).repeat(depths)
        self._matrix[rows, within] = list(chain.from_iterable(members))

    def _grow(self) -> None:
        self._matrix = np.concatenate([self._matrix, np.full_like(self._matrix, -1)])
        self._depth = np.concatenate([self._depth, np.zeros_like(self._depth)])

    def members(self, number: int) -> tuple[int, ...]:
        """Return the budgets of a path, root first."""
        return self._members[number]

    def depths(self, numbers: Ints) -> NDArray[np.int32]:
        """Return how many budgets each of these paths has."""
        return self._depth[numbers]

    def pairs(self, numbers: Ints) -> Pairs:
        """Return the pairs of requests with these paths, shape (n,)."""
        if len(numbers) == 1:
            return _pairs_of_one(self._members[numbers.item()])
        depths = self._depth[numbers]
        starts = np.zeros(len(numbers) + 1, np.int64)
        depths.cumsum(out=starts[1:])
        members = self._matrix[numbers]
        budget = members[members >= 0].astype(np.int64)
        row = np.arange(len(numbers)).repeat(depths)
        if len(budget) <= _FEW:
            budgets = np.array(sorted(set(budget.tolist())), np.int64)
            place = budgets.searchsorted(budget)
        else:
            used = np.zeros(int(budget.max()) + 1, np.bool_)
            used[budget] = True
            budgets = np.flatnonzero(used)
            place = (used.cumsum() - 1)[budget]
        return Pairs(budgets=budgets, budget=budget, row=row, place=place, starts=starts)


def _pairs_of_one(members: tuple[int, ...]) -> Pairs:
    """Return the pairs of a single request: most batches of a quiet partition are of one."""
    budget = np.array(members, np.int64)
    budgets = np.array(sorted(members), np.int64)
    return Pairs(
        budgets=budgets,
        budget=budget,
        row=np.zeros(len(members), np.int64),
        place=budgets.searchsorted(budget),
        starts=np.array([0, len(members)]),
    )
