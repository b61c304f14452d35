"""What the records of a partition mean in the ledger; pure, so that every reader agrees.

The rows of a request are a function of its decision, its first accepted usage and the clock of
the outcomes partition. :class:`Case` carries what is known of one request; feeding it the same
records in the order of their offsets, decision first, always gives the same bookings.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, NamedTuple

from msgspec import Struct

from policy.acceptance import is_accepted, is_expired, split_cost
from policy.money import Price, call_cost_nanousd

Part = Literal["usage", "reward"]
Stage = Literal["new", "reserved", "expired", "settled"]

_PARTS: tuple[Part, Part] = ("usage", "reward")


class Posting(Struct, frozen=True, gc=False):
    """One transfer to be booked; ``cause`` is the record that it stems from."""

    kind: str
    debit: str
    credit: str
    amount_nanousd: int
    event_ms: int
    cause: Literal["decision", "outcome"]
    offset: int


class Booked(Struct, frozen=True, gc=False):
    """What the books need of an effective decision; ``price`` is None for a rejection."""

    offset: int
    decision_id: str
    request_id: str
    budget: str
    arm: str | None
    price: Price | None
    reserved_nanousd: int
    decided_ms: int
    expires_ms: int
    fingerprint: bytes


class Reported(Struct, frozen=True, gc=False):
    """What the books need of an outcome; ``clock_ms`` is the partition's clock at its record.

    ``decision_id`` follows from key and request id; ``named_decision_id`` is what the record says.
    """

    offset: int
    request_id: str
    decision_id: str
    named_decision_id: str | None
    at_ms: int
    clock_ms: int
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    billed_nanousd: int | None = None
    reward: float | None = None

    @property
    def has_usage(self) -> bool:
        """Whether this outcome can settle its request."""
        return self.prompt_tokens is not None or self.billed_nanousd is not None

    def cost_nanousd(self, price: Price) -> int:
        """Return what the call cost: the bill if there is one, or tokens at the pinned price."""
        if self.billed_nanousd is not None:
            return self.billed_nanousd
        return call_cost_nanousd(
            price,
            input_tokens=self.prompt_tokens or 0,
            output_tokens=self.completion_tokens or 0,
            cached_tokens=self.cached_tokens or 0,
        )

    def content(self, part: Part) -> tuple[int | float | None, ...] | None:
        """Return what this part says, to tell a copy from a contradiction; None if it is none."""
        if part == "reward":
            return None if self.reward is None else (self.reward,)
        if not self.has_usage:
            return None
        tokens = (self.prompt_tokens, self.completion_tokens, self.cached_tokens)
        return (*tokens, self.billed_nanousd)


class Copy(NamedTuple):
    """A part of an outcome that has no effect: an equal copy if ``reason`` is empty."""

    part: Part
    reason: str
    first_offset: int | None


class Case(Struct, kw_only=True, gc=False):
    """One request: its decision, which outcomes count for it, and what is booked already."""

    decision: Booked
    stage: Stage = "new"
    usage: Reported | None = None
    reward: Reported | None = None

    def take(self, outcome: Reported) -> list[Copy]:
        """Let an outcome count where it is the first to report; return its parts that do not.

        Outcomes must be of this request, in the order of their offsets. The caller books
        :meth:`due` afterwards.
        """
        refusal = self._refusal(outcome)
        copies: list[Copy] = []
        if not (refusal or self.usage or self.reward):
            self.usage = outcome if outcome.has_usage else None
            self.reward = outcome if outcome.reward is not None else None
            return copies
        for part in _PARTS:
            content = outcome.content(part)
            if content is None:
                continue
            first = self.usage if part == "usage" else self.reward
            if refusal:
                copies.append(Copy(part, refusal, self.decision.offset))
            elif first is not None:
                reason = "" if first.content(part) == content else f"other_{part}"
                copies.append(Copy(part, reason, first.offset))
            elif part == "usage":
                self.usage = outcome
            else:
                self.reward = outcome
        return copies

    def _refusal(self, outcome: Reported) -> str:
        if outcome.named_decision_id not in (None, self.decision.decision_id):
            return "other_decision"
        if not is_accepted(decided_ms=self.decision.decided_ms, outcome_ms=outcome.at_ms):
            return "too_early"
        return "rejected" if self.decision.arm is None else ""

    def due(self, swept_ms: int) -> list[Posting]:
        """Return what is to be booked now, in order, and take it as booked.

        ``swept_ms`` is how far the partition's expiry is booked: reservations that expire before
        it have expired in the books.
        """
        if self.decision.arm is None or self.stage == "settled":
            return []
        decision, usage, postings = self.decision, self.usage, []
        if self.stage == "new":
            postings.append(_posting("reserve", decision.reserved_nanousd, decision, None))
            self.stage = "reserved"
        clock_ms = swept_ms if usage is None else usage.clock_ms
        expired = is_expired(expires_ms=decision.expires_ms, clock_ms=clock_ms)
        if self.stage == "reserved" and expired:
            postings.append(_posting("expire", decision.reserved_nanousd, decision, None))
            self.stage = "expired"
        if usage is not None:
            if self.stage == "expired":
                postings.append(_posting("adjust", decision.reserved_nanousd, decision, usage))
            postings += _settle(decision, usage)
            self.stage = "settled"
        return postings


ACCOUNTS = {
    "reserve": ("reserved", "available"),
    "settle": ("spent", "reserved"),
    "release": ("available", "reserved"),
    "overrun": ("overrun", "available"),
    "expire": ("expired", "reserved"),
    "adjust": ("reserved", "expired"),
}


@lru_cache(maxsize=16_384)
def _accounts(kind: str, budget: str) -> tuple[str, str]:
    debit, credit = ACCOUNTS[kind]
    return f"{debit}:{budget}", f"{credit}:{budget}"


def _posting(kind: str, amount_nanousd: int, decision: Booked, usage: Reported | None) -> Posting:
    debit, credit = _accounts(kind, decision.budget)
    if usage is not None:
        return Posting(kind, debit, credit, amount_nanousd, usage.at_ms, "outcome", usage.offset)
    # An expiry's place is the decision's: which record moved the clock past it is a matter of
    # batching.
    event_ms = decision.decided_ms if kind == "reserve" else decision.expires_ms
    return Posting(kind, debit, credit, amount_nanousd, event_ms, "decision", decision.offset)


def _settle(decision: Booked, usage: Reported) -> list[Posting]:
    assert decision.price is not None
    split = split_cost(
        reserved_nanousd=decision.reserved_nanousd, cost_nanousd=usage.cost_nanousd(decision.price)
    )
    postings = [_posting("settle", split.settled_nanousd, decision, usage)]
    if split.released_nanousd:
        postings.append(_posting("release", split.released_nanousd, decision, usage))
    if split.overrun_nanousd:
        postings.append(_posting("overrun", split.overrun_nanousd, decision, usage))
    return postings
