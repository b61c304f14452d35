"""Nearest-neighbour estimates: what happened to requests like this one, per arm.

Points lie in a ``usearch`` index that grows as outcomes arrive. An index that is full starts anew
from the later half of its points, and a dump lists the points in the order in which they were
added, so that a restored index is built by the same steps and answers alike.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from usearch.index import Index

from policy.baselines.base import PRIOR_REWARD, MeansPolicy, units
from policy.marks import mark_of, split_mark
from policy.terms import Contexts, Floats, Ints, Learning, Settings

EXACT_MAX = 512
"""Up to so many points every one is looked at; beyond, the graph of the index is searched."""
CAPACITY = 1024
_RECENT = 64
_REWARD, _OUTPUTS, _UNITS, _INPUTS = range(4)
_COLUMNS = 4


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


class NeighbourPolicy(MeansPolicy):
    """A policy whose estimates come from the nearest outcomes of each arm.

    Options: ``neighbours`` (5), ``sharpness`` (0: all alike), ``shrink`` (1: the arm's own mean
    counts as so many neighbours; 0 is the plain mean), ``history`` (1024 points per arm). What
    other partitions learned enters through the means only; points stay where they were seen.
    """

    # Points are numbered in the order in which they came, over all arms.
    spans_arms: Literal[True] = True
    OPTIONS = MeansPolicy.OPTIONS | {"neighbours", "sharpness", "shrink", "history"}

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._count = int(self._option("neighbours", 5))
        self._sharpness = self._option("sharpness", 0.0)
        self._shrink = self._option("shrink", 1.0)
        self._history = int(self._option("history", CAPACITY))
        if self._count < 1 or self._sharpness < 0.0 or self._shrink < 0.0:
            raise ValueError("neighbours must be at least 1, sharpness and shrink not negative")
        self._points: dict[str, Neighbours] = {}
        self._order = 0

    def learn(self, learning: Learning) -> None:
        """Add one outcome to the sums and to the points of its arm."""
        super().learn(learning)
        price = learning.price or self._price(learning.arm)
        cost = learning.cost_nanousd
        values = np.full(_COLUMNS, np.nan)
        if learning.reward is not None:
            values[_REWARD] = learning.reward
        if learning.output_tokens is not None:
            values[_OUTPUTS] = learning.output_tokens
        if cost is not None and price is not None:
            values[_UNITS] = units(price, cost)
        if np.isnan(values).all():
            return
        values[_INPUTS] = np.nan if np.isnan(values[_UNITS]) else learning.input_tokens
        vector = learning.features[:-1]
        points = self._points.get(learning.arm)
        if points is None:
            points = Neighbours(len(vector), _COLUMNS, capacity=self._history)
            self._points[learning.arm] = points
        # Rounded as in a dump, so that a restored policy knows the same numbers.
        rounded = values.astype(np.float32).astype(np.float64)
        # The next order must follow from the points alone: a dump has nothing else.
        self._order += points.add(vector, rounded, order=self._order)

    def dump(self, arm: str) -> bytes:
        """Return the sums of one arm, then its points."""
        points = self._points.get(arm)
        marked = mark_of(self._settings.features)
        return super().dump(arm) + marked + (b"" if points is None else points.dumps())

    def load(self, arm: str, state: bytes) -> None:
        """Put the sums and the points of one arm back."""
        super().load(arm, state[:64])
        points = Neighbours(self._settings.dimensions, _COLUMNS, capacity=self._history)
        mark, rest = split_mark(state[64:])
        if mark != mark_of(self._settings.features):
            # Points of other features lie elsewhere; the means are what they were.
            rest = b""
        points.loads(rest)
        self._points[arm] = points
        if len(points):
            self._order = max(self._order, int(points.orders[-1]) + 1)

    def merge(self, arm: str, source: int, state: bytes) -> None:
        """Count the sums of another partition; its points are not taken over."""
        super().merge(arm, source, state[:64])

    def _estimates(self, contexts: Contexts) -> tuple[Floats, Floats]:
        """Return expected reward and dollars from the neighbours of each request, each (n, k)."""
        shape = (len(contexts), len(self._arms))
        reward = np.full(shape, PRIOR_REWARD)
        tokens, unit = np.zeros(shape), np.full(shape, np.nan)
        prior_reward, prior_tokens = self._mean_reward(), self._mean_output_tokens()
        queries = contexts.features[:, :-1]
        for column, arm in enumerate(self._arms):
            points = self._points.get(arm.arm)
            reward[:, column] = prior_reward[column]
            tokens[:, column] = prior_tokens[column]
            if points is None:
                continue
            means, weights = points.means(queries, count=self._count, sharpness=self._sharpness)
            reward[:, column] = self._blend(means, weights, _REWARD, prior_reward[column])
            tokens[:, column] = self._blend(means, weights, _OUTPUTS, prior_tokens[column])
            unit[:, column] = np.where(weights[:, _OUTPUTS] > 0, np.nan, means[:, _UNITS])
        return np.clip(reward, 0.0, 1.0), self._dollars(contexts, tokens, unit)

    def _blend(self, means: Floats, weights: Floats, column: int, prior: float) -> Floats:
        weight = weights[:, column]
        value = np.where(weight > 0.0, means[:, column], 0.0)
        total = weight + self._shrink
        return np.where(
            total > 0.0,
            (weight * value + self._shrink * prior) / np.where(total > 0.0, total, 1.0),
            prior,
        )

    def _recent_contexts(self, count: int) -> Contexts | None:
        """Return the contexts of the latest outcomes of any arm, oldest first; None if none."""
        held = [self._points[a.arm] for a in self._arms if a.arm in self._points]
        held = [points for points in held if len(points)]
        if not held:
            return None
        orders = np.concatenate([points.orders for points in held])
        latest = np.argsort(orders, kind="stable")[-count:]
        vectors = np.concatenate([points.vectors for points in held])[latest]
        inputs = np.concatenate([points.values for points in held])[latest, _INPUTS]
        constant = np.ones((len(latest), 1))
        return Contexts(
            features=np.hstack([vectors, constant]),
            input_tokens=np.where(np.isnan(inputs), 0.0, inputs).astype(np.int64),
            max_output_tokens=np.full(len(latest), 2**31, dtype=np.int64),
            seeds=np.zeros(len(latest), dtype=np.uint64),
        )
