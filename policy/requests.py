"""Requests as the core is given them: one by one, or a batch in columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from itertools import compress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy.terms import Bools, Ints, Seeds


@dataclass(slots=True, kw_only=True, eq=False)
class Incoming:
    """A request as the core is given it: checked, its features made, its id hashed."""

    offset: int
    id: bytes
    request_print: int
    budget: str
    features: NDArray[np.float32]
    input_tokens: int
    max_output_tokens: int
    at_ms: int
    seed: int
    segment: str = "all"
    arms: frozenset[str] | None = None
    capabilities: frozenset[str] = frozenset()
    latency_ms_max: int | None = None
    deadline_ms: int | None = None
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraints:
    """What few requests have: which arms they may use, how quick, and until when."""

    arms: frozenset[str] | None = None
    capabilities: frozenset[str] = frozenset()
    latency_ms_max: int | None = None
    deadline_ms: int | None = None

    @property
    def on_arms(self) -> bool:
        """Return whether they narrow the choice of arms."""
        return self.arms is not None or bool(self.capabilities) or self.latency_ms_max is not None


UNCONSTRAINED = Constraints()
_CONSTRAINTS = tuple(f.name for f in fields(Constraints))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Requests:
    """``n`` requests in columns; see :class:`Incoming`.

    Parameters
    ----------
    offsets, request_prints, at_ms : list of int
    ids : list of bytes
    budgets, segments, names : list of str
    features : ndarray of float32, shape (n, d)
    input_tokens, max_output_tokens : ndarray of int64, shape (n,)
    seeds : ndarray of uint64, shape (n,)
    constraints : dict
        By row, of those requests that have any.
    """

    offsets: list[int]
    ids: list[bytes]
    request_prints: list[int]
    budgets: list[str]
    features: NDArray[np.float32]
    input_tokens: Ints
    max_output_tokens: Ints
    at_ms: list[int]
    seeds: Seeds
    segments: list[str]
    names: list[str]
    constraints: dict[int, Constraints] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def of(cls, requests: Sequence[Incoming], *, width: int) -> Requests:
        """Return the columns of these requests, each with ``width`` features."""
        features = np.empty((len(requests), width), np.float32)
        constraints = {}
        for row, request in enumerate(requests):
            features[row] = request.features
            found = Constraints(**{name: getattr(request, name) for name in _CONSTRAINTS})
            if found != UNCONSTRAINED:
                constraints[row] = found
        return cls(
            offsets=[r.offset for r in requests],
            ids=[r.id for r in requests],
            request_prints=[r.request_print for r in requests],
            budgets=[r.budget for r in requests],
            features=features,
            input_tokens=np.array([r.input_tokens for r in requests], np.int64),
            max_output_tokens=np.array([r.max_output_tokens for r in requests], np.int64),
            at_ms=[r.at_ms for r in requests],
            seeds=np.array([r.seed for r in requests], np.uint64),
            segments=[r.segment for r in requests],
            names=[r.name for r in requests],
            constraints=constraints,
        )

    def row(self, row: int) -> Incoming:
        """Return one request by itself."""
        constraints = self.constraints.get(row, UNCONSTRAINED)
        return Incoming(
            offset=self.offsets[row],
            id=self.ids[row],
            request_print=self.request_prints[row],
            budget=self.budgets[row],
            features=self.features[row],
            input_tokens=self.input_tokens.item(row),
            max_output_tokens=self.max_output_tokens.item(row),
            at_ms=self.at_ms[row],
            seed=self.seeds.item(row),
            segment=self.segments[row],
            name=self.names[row],
            **{name: getattr(constraints, name) for name in _CONSTRAINTS},
        )

    def where(self, kept: Bools) -> Requests:
        """Return the requests of the rows where ``kept`` is True."""
        if kept.all():
            return self
        chosen = kept.tolist()
        places = np.cumsum(kept) - 1
        columns: dict[str, Any] = {
            name: list(compress(getattr(self, name), chosen)) for name in _LISTS
        }
        columns |= {name: getattr(self, name)[kept] for name in _ARRAYS}
        constraints = {
            int(places[row]): found for row, found in self.constraints.items() if chosen[row]
        }
        return Requests(**columns, constraints=constraints)

    def after(self, first: Requests) -> Requests:
        """Return the requests of ``first`` and then these."""
        if not len(first):
            return self
        columns: dict[str, Any] = {n: getattr(first, n) + getattr(self, n) for n in _LISTS}
        columns |= {n: np.concatenate([getattr(first, n), getattr(self, n)]) for n in _ARRAYS}
        moved = {row + len(first): found for row, found in self.constraints.items()}
        return Requests(**columns, constraints={**first.constraints, **moved})


_LISTS = ("offsets", "ids", "request_prints", "budgets", "at_ms", "segments", "names")
_ARRAYS = ("features", "input_tokens", "max_output_tokens", "seeds")
