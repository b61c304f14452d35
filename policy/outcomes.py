"""Outcomes as the core is given them: one by one, or a batch in columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from policy.terms import Bools, Floats, Ints

UNKNOWN = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """An outcome as the core is given it: checked, its id hashed, its parts fingerprinted."""

    offset: int
    id: bytes
    at_ms: int
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int = 0
    cost_nanousd: int | None = None
    usage_print: int = 0
    reward: float | None = None
    reward_print: int = 0
    latency_ms: int | None = None
    error: bool = False
    against: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Arrivals:
    """``n`` outcomes in columns, in the order of their offsets; see :class:`Arrival`.

    Tokens, costs and latencies are ``UNKNOWN`` and rewards nan where an outcome has none.
    """

    offsets: Ints
    ids: list[bytes]
    at_ms: Ints
    input_tokens: Ints
    output_tokens: Ints
    cached_tokens: Ints
    cost_nanousd: Ints
    usage_print: NDArray[np.uint64]
    reward: Floats
    reward_print: NDArray[np.uint64]
    latency_ms: Ints
    error: Bools
    against: list[str | None]

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def has_usage(self) -> Bools:
        """Return which outcomes settle a reservation."""
        known: Bools = (self.output_tokens != UNKNOWN) | (self.cost_nanousd != UNKNOWN)
        return known

    @cached_property
    def has_reward(self) -> Bools:
        """Return which outcomes bring a reward."""
        known: Bools = ~np.isnan(self.reward)
        return known

    @classmethod
    def of(cls, arrivals: Sequence[Arrival]) -> Arrivals:
        """Return the columns of these outcomes."""

        def whole(values: Sequence[int | None]) -> Ints:
            return np.array([UNKNOWN if v is None else v for v in values], np.int64)

        return cls(
            offsets=whole([a.offset for a in arrivals]),
            ids=[a.id for a in arrivals],
            at_ms=whole([a.at_ms for a in arrivals]),
            input_tokens=whole([a.input_tokens for a in arrivals]),
            output_tokens=whole([a.output_tokens for a in arrivals]),
            cached_tokens=whole([a.cached_tokens for a in arrivals]),
            cost_nanousd=whole([a.cost_nanousd for a in arrivals]),
            usage_print=np.array([a.usage_print for a in arrivals], np.uint64),
            reward=np.array([np.nan if a.reward is None else a.reward for a in arrivals]),
            reward_print=np.array([a.reward_print for a in arrivals], np.uint64),
            latency_ms=whole([a.latency_ms for a in arrivals]),
            error=np.array([a.error for a in arrivals], np.bool_),
            against=[a.against for a in arrivals],
        )

    def between(self, first: int, last: int) -> Arrivals:
        """Return the outcomes from row ``first`` to before ``last``."""
        if (first, last) == (0, len(self)):
            return self
        return Arrivals(**{name: getattr(self, name)[first:last] for name in _COLUMNS})

    def row(self, row: int) -> Arrival:
        """Return one outcome by itself."""
        reward = self.reward.item(row)

        def known(column: Ints) -> int | None:
            value = column.item(row)
            return None if value == UNKNOWN else value

        return Arrival(
            offset=self.offsets.item(row),
            id=self.ids[row],
            at_ms=self.at_ms.item(row),
            input_tokens=known(self.input_tokens),
            output_tokens=known(self.output_tokens),
            cached_tokens=self.cached_tokens.item(row),
            cost_nanousd=known(self.cost_nanousd),
            usage_print=self.usage_print.item(row),
            reward=None if reward != reward else reward,
            reward_print=self.reward_print.item(row),
            latency_ms=known(self.latency_ms),
            error=self.error.item(row),
            against=self.against[row],
        )


_COLUMNS = tuple(f.name for f in fields(Arrivals))
