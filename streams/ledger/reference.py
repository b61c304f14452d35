"""What the ledger must hold, folded once more from the records, in the plainest way.

It shares the decoders with the sink but none of its bookkeeping, so that a fault there shows. It
works out anew which request a record is about, and to which partition its key belongs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from aiokafka.partitioner import DefaultPartitioner

from policy.acceptance import PARK_MS
from streams.records import Decision, Outcome


class SeenDecision(NamedTuple):
    """A readable decision at its place; ``value`` are its bytes."""

    offset: int
    identity: str
    value: bytes
    decision: Decision


class SeenOutcome(NamedTuple):
    """A readable outcome at its place; ``clock_ms`` is the largest timestamp up to there."""

    offset: int
    identity: str
    at_ms: int
    clock_ms: int
    outcome: Outcome


@dataclass(slots=True, kw_only=True)
class Books:
    """The bookings of one partition, by identity: amounts by kind, and what has no effect.

    ``subjects`` are the budget and the request id of each effective decision.
    """

    amounts: dict[str, dict[str, int]] = field(default_factory=dict)
    offsets: dict[str, int] = field(default_factory=dict)
    subjects: dict[str, tuple[str, str]] = field(default_factory=dict)
    decision_copies: int = 0
    outcome_copies: int = 0
    conflicts: set[tuple[str, int, str]] = field(default_factory=set)


@dataclass(slots=True)
class Booking:
    """What the ledger holds under one decision id: amounts by kind, for whom, because of what."""

    amounts: dict[str, int] = field(default_factory=dict)
    subjects: set[tuple[str, str]] = field(default_factory=set)
    sources: list[tuple[str, int]] = field(default_factory=list)


def identity_of(root: bytes, request_id: str) -> str:
    """Return what a request is known by: the decision id that only its root and id can have."""
    try:
        root.decode()
    except UnicodeDecodeError:
        root = b""
    return hashlib.blake2b(b"/".join([root, request_id.encode()]), digest_size=16).hexdigest()


@lru_cache(maxsize=65_536)
def home_of(key: bytes, partitions: int) -> int:
    """Return the partition where the producers' own partitioner puts this key."""
    numbers = list(range(partitions))
    return int(DefaultPartitioner()(key, numbers, numbers))


def expected_books(
    decisions: Iterable[SeenDecision], outcomes: Iterable[SeenOutcome], *, swept_ms: int
) -> Books:
    """Return what must be booked of one partition's records, both in the order of their offsets.

    ``swept_ms`` is how far the ledger says that it has booked expiry.
    """
    books = Books()
    effective: dict[str, SeenDecision] = {}
    for seen in decisions:
        first = effective.setdefault(seen.identity, seen)
        if first is seen:
            continue
        if first.value == seen.value:
            books.decision_copies += 1
        else:
            books.conflicts.add(("decision", seen.offset, "decision"))
    reports: dict[str, list[SeenOutcome]] = {}
    for report in outcomes:
        reports.setdefault(report.identity, []).append(report)
    for identity, seen in effective.items():
        books.offsets[identity] = seen.offset
        books.subjects[identity] = (seen.decision.budget, seen.decision.request_id)
        usage = _first_usage(books, seen.decision, reports.get(identity, []))
        if seen.decision.arm is not None:
            books.amounts[identity] = _amounts(seen.decision, usage, swept_ms)
    return books


def _first_usage(
    books: Books, decision: Decision, reports: list[SeenOutcome]
) -> SeenOutcome | None:
    first_usage: SeenOutcome | None = None
    first_reward: float | None = None
    for report in reports:
        outcome = report.outcome
        has_usage = outcome.usage is not None or outcome.cost_nanousd is not None
        counts = (
            decision.arm is not None
            and outcome.decision_id in (None, decision.decision_id)
            and decision.decided_ms <= report.at_ms + PARK_MS
        )
        if has_usage:
            if counts and first_usage is None:
                first_usage = report
            elif counts and first_usage is not None and _same(first_usage.outcome, outcome):
                books.outcome_copies += 1
            else:
                books.conflicts.add(("outcome", report.offset, "usage"))
        if outcome.reward is not None:
            if counts and first_reward is None:
                first_reward = outcome.reward
            elif counts and first_reward == outcome.reward:
                books.outcome_copies += 1
            else:
                books.conflicts.add(("outcome", report.offset, "reward"))
    return first_usage


def _same(one: Outcome, other: Outcome) -> bool:
    return one.usage == other.usage and one.cost_nanousd == other.cost_nanousd


def _amounts(decision: Decision, usage: SeenOutcome | None, swept_ms: int) -> dict[str, int]:
    reserved = decision.reserved_nanousd
    amounts = {"reserve": reserved}
    if usage is None:
        if swept_ms > decision.expires_ms:
            amounts["expire"] = reserved
        return amounts
    if usage.clock_ms > decision.expires_ms:
        amounts["expire"] = amounts["adjust"] = reserved
    cost = _cost_nanousd(decision, usage.outcome)
    amounts["settle"] = min(cost, reserved)
    if cost < reserved:
        amounts["release"] = reserved - cost
    if cost > reserved:
        amounts["overrun"] = cost - reserved
    return amounts


def _cost_nanousd(decision: Decision, outcome: Outcome) -> int:
    if outcome.cost_nanousd is not None:
        return outcome.cost_nanousd
    assert outcome.usage is not None and decision.price is not None
    tokens, price = outcome.usage, decision.price
    cached_price = price.input if price.cached is None else price.cached
    thousandths = (tokens.prompt_tokens - tokens.cached_tokens) * price.input
    thousandths += tokens.cached_tokens * cached_price + tokens.completion_tokens * price.output
    return (thousandths + 999) // 1_000
