"""Decisions as they are read back from their topic, for taking effect once more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec

from policy.choices import Choice
from policy.money import Price
from policy.recover import Folded
from policy.requests import Incoming
from streams.records import Decision


def batch_of(placed: tuple[int, Decision]) -> tuple[int, int, int]:
    """Return what the decisions of one call have in common; each has its offset before it."""
    decision = placed[1]
    return decision.offsets.batch, decision.decided_ms, decision.offsets.decisions


def folded_decisions(
    batch: Sequence[tuple[int, Decision]], requests: Mapping[int, Incoming]
) -> Iterator[Folded]:
    """Yield decisions as ``policy.recover`` takes them; ``requests`` by their offsets."""
    for offset, decision in batch:
        price: Price | None = None
        if decision.price is not None:
            tag = decision.price
            price = Price(
                version=tag.version, input=tag.input, output=tag.output, cached=tag.cached
            )
        request = requests[decision.offsets.request]
        # As it was counted then, whichever segments the catalog names now.
        request.segment = decision.segment
        choice = Choice(
            request=request,
            row=0,
            arm=decision.arm,
            rejected=decision.rejected,
            max_output_tokens=decision.max_output_tokens,
            reserved_nanousd=decision.reserved_nanousd,
            price=price,
            reward=decision.reward,
            cost_nanousd=decision.cost_nanousd,
            propensity=decision.propensity,
            explored=decision.explored,
            budgets=[msgspec.structs.astuple(position) for position in decision.budgets],
        )
        yield Folded(
            offset=offset,
            choice=choice,
            batch=decision.offsets.batch,
            outcomes=decision.offsets.outcomes,
            decided_ms=decision.decided_ms,
            expires_ms=decision.expires_ms,
        )
