"""Nearest-neighbour estimates: what happened to requests like this one, per arm.

Points lie in a ``usearch`` index that grows as outcomes arrive. An index that is full starts anew
from the later half of its points, and a dump lists the points in the order in which they were
added, so that a restored index is built by the same steps and answers alike.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from usearch.index import Index

from policy.terms import Floats, Ints

EXACT_MAX = 512
"""Up to so many points every one is looked at; beyond, the graph of the index is searched."""
CAPACITY = 1024
_RECENT = 64


class Neighbours:
    """Points with values, found by the angle between their vectors.

    Parameters
    ----------
    dimensions : int
    columns : int
        Values per point; an unknown one is nan.
    capacity : int
        Most points held. At this number the older half is forgotten.
    """

    def __init__(self, dimensions: int, columns: int, *, capacity: int = CAPACITY) -> None:
        if min(dimensions, columns) < 1 or capacity < 2:
            raise ValueError(f"no room for {capacity} points of {dimensions} and {columns} numbers")
        self.dimensions = dimensions
        self._columns = columns
        self._capacity = capacity
        self._vectors: NDArray[np.float16] = np.zeros((capacity, dimensions), np.float16)
        self._values: Floats = np.full((capacity, columns), np.nan)
        self._orders: Ints = np.zeros(capacity, np.int64)
        self._size = 0
        self._index = self._new_index()

    def __len__(self) -> int:
        return self._size

    @property
    def vectors(self) -> Floats:
        """The points in the order of arrival, shape (m, dimensions)."""
        return self._vectors[: self._size].astype(np.float64)

    @property
    def values(self) -> Floats:
        """Their values, shape (m, columns)."""
        return self._values[: self._size].copy()

    @property
    def orders(self) -> Ints:
        """Their orders, shape (m,)."""
        return self._orders[: self._size].copy()

    def add(self, vector: Floats, values: Floats, *, order: int = 0) -> bool:
        """Add a point, or complete a recent one that has the same vector and lacks these values.

        Cost and reward of one call may arrive apart; they belong to one point. Returns whether
        there is a new point.
        """
        # What is stored is what is compared, so a restored index holds the same numbers.
        rounded = np.clip(vector, -60_000.0, 60_000.0).astype(np.float16)
        start = max(self._size - _RECENT, 0)
        known = ~np.isnan(values)
        same = (self._vectors[start : self._size] == rounded).all(axis=1)
        same &= np.isnan(self._values[start : self._size][:, known]).all(axis=1)
        if same.any():
            self._values[start + int(np.argmax(same)), known] = values[known]
            return False
        if self._size == self._capacity:
            kept = self._capacity // 2
            for array in (self._vectors, self._values, self._orders):
                array[:kept] = array[self._size - kept : self._size].copy()
            self._rebuild(kept)
        self._vectors[self._size] = rounded
        self._values[self._size] = values
        self._orders[self._size] = order
        self._index.add(self._size, rounded.astype(np.float32), threads=1)
        self._size += 1
        return True

    def means(
        self, queries: Floats, *, count: int, sharpness: float = 0.0
    ) -> tuple[Floats, Floats]:
        """Return the mean values of the nearest points and how much they weigh.

        Parameters
        ----------
        queries : ndarray, shape (n, dimensions)
        count : int
            Neighbours looked at.
        sharpness : float
            A neighbour weighs ``exp(sharpness * (similarity - 1))``; 0 weighs all alike.

        Returns
        -------
        means, weights : ndarray, shape (n, columns)
            Over the neighbours that know the column; nan and 0 where none does.
        """
        if self._size == 0 or len(queries) == 0:
            shape = (len(queries), self._columns)
            return np.full(shape, np.nan), np.zeros(shape)
        found = self._index.search(
            np.ascontiguousarray(queries, dtype=np.float32),
            min(count, self._size),
            exact=self._size <= EXACT_MAX,
            threads=1,
        )
        keys = np.atleast_2d(np.asarray(found.keys)).astype(np.int64)
        distances = np.atleast_2d(np.asarray(found.distances, dtype=np.float64))
        # A graph search may come back with less than it was asked for.
        counts = np.asarray(getattr(found, "counts", [keys.shape[1]]))
        there = np.arange(keys.shape[1]) < counts[:, None]
        values = self._values[np.where(there, keys, 0)]
        # A vector of zeros has no angle.
        distances = np.where(there & np.isfinite(distances), distances, 1.0)
        weight = np.exp(-sharpness * distances) * there
        known = weight[:, :, None] * ~np.isnan(values)
        total = known.sum(axis=1)
        summed = (known * np.where(np.isnan(values), 0.0, values)).sum(axis=1)
        means = np.where(total > 0.0, summed / np.where(total > 0.0, total, 1.0), np.nan)
        return means, total

    def dumps(self) -> bytes:
        """Return the points as bytes: orders, vectors, values."""
        parts = (
            self._orders[: self._size].astype("<i8"),
            self._vectors[: self._size].astype("<f2"),
            self._values[: self._size].astype("<f4"),
        )
        return b"".join(part.tobytes() for part in parts)

    def loads(self, state: bytes) -> None:
        """Take the points of :meth:`dumps` in place of one's own.

        Raises
        ------
        ValueError
            If the bytes are not whole points of this shape, or are too many.
        """
        width = 8 + 2 * self.dimensions + 4 * self._columns
        size, rest = divmod(len(state), width)
        if rest or size > self._capacity:
            raise ValueError(f"{len(state)} bytes are not up to {self._capacity} points of {width}")
        values_at = size * (8 + 2 * self.dimensions)
        self._orders[:size] = np.frombuffer(state, "<i8", size)
        vectors = np.frombuffer(state, "<f2", size * self.dimensions, 8 * size)
        values = np.frombuffer(state, "<f4", size * self._columns, values_at)
        if not np.isfinite(vectors).all() or np.isinf(values).any():
            raise ValueError("points must be finite")
        self._vectors[:size] = vectors.reshape(size, self.dimensions)
        self._values[:size] = values.reshape(size, self._columns)
        self._rebuild(size)

    def _rebuild(self, size: int) -> None:
        self._size = size
        self._index = self._new_index()
        if size:
            vectors = self._vectors[:size].astype(np.float32)
            # One by one, as they came: a batch would build another graph.
            for key in range(size):
                self._index.add(key, vectors[key], threads=1)

    def _new_index(self) -> Any:
        return Index(
            ndim=self.dimensions,
            metric="cos",
            dtype="f32",
            connectivity=32,
            expansion_add=200,
            expansion_search=50,
        )
