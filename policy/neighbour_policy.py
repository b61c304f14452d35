"""Policies that estimate from the nearest outcomes of each arm."""

from __future__ import annotations

from typing import Literal

import numpy as np

from policy.baselines.base import PRIOR_REWARD, MeansPolicy, units
from policy.marks import mark_of, split_mark
from policy.neighbours import CAPACITY, Neighbours
from policy.terms import Contexts, Floats, Learning, Settings

_REWARD, _OUTPUTS, _UNITS, _INPUTS = range(4)
_COLUMNS = 4


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
