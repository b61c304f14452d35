"""Reads decisions and outcomes for the ledger, refusing what cannot be booked."""

from __future__ import annotations

import functools
import operator

from policy.acceptance import fingerprint
from policy.money import Price
from streams.ledger.fold import Booked, Reported
from streams.records import BadRecordError, Decision, Outcome, PriceTag, decision_id, decode
from streams.topics import home_partition

INT64_MAX = 2**63 - 1
TEXT_MAX = 400


def read_decision(value: bytes | None) -> tuple[Decision, bytes]:
    """Return a decision that can be booked, and the fingerprint of its content.

    Raises
    ------
    BadRecordError
        If the record is unreadable, contradicts itself or does not fit the books.
    """
    decision = decode(Decision, value)
    _check_numbers(decision)
    texts = (
        decision.decision_id,
        decision.request_id,
        decision.budget,
        decision.policy,
        decision.segment,
        decision.arm or "",
        decision.rejected or "",
    )
    text = "".join(texts)
    # If all together are short enough, each is.
    if "\0" in text or (len(text) > TEXT_MAX and max(map(len, texts)) > TEXT_MAX):
        raise BadRecordError("range", f"a text holds NUL or over {TEXT_MAX} characters")
    if not decision.decision_id or not decision.request_id or not decision.budget:
        raise BadRecordError("range", "decision_id, request_id or budget is empty")
    if decision.decision_id != decision_id(root_of(decision.budget), decision.request_id):
        raise BadRecordError("wrong_decision_id", "not that of its budget's root and its request")
    if (decision.arm is None) == (decision.rejected is None):
        raise BadRecordError("inconsistent", "either arm or rejected must be given")
    if decision.arm is not None:
        _check_price(decision)
    return decision, fingerprint(value or b"")


def _check_numbers(decision: Decision) -> None:
    offsets = decision.offsets
    numbers = (
        decision.decided_ms,
        decision.expires_ms,
        decision.reserved_nanousd,
        decision.cost_nanousd,
        decision.input_tokens,
        decision.max_output_tokens,
        offsets.outcomes,
        offsets.catalog,
        0 if decision.price is None else decision.price.version,
    )
    if not 0 <= functools.reduce(operator.or_, numbers) <= INT64_MAX:
        raise BadRecordError("range", f"a number is outside of [0, 2^63): {numbers}")


def _check_price(decision: Decision) -> None:
    if decision.price is None:
        raise BadRecordError("inconsistent", "an arm without the price that it was chosen at")
    try:
        _price(decision.price)
    except ValueError as exc:
        raise BadRecordError("inconsistent", str(exc)) from None


def price_of(decision: Decision) -> Price:
    """Return the price version that the decision pins; ``ValueError`` if it is none."""
    assert decision.price is not None
    return _price(decision.price)


@functools.lru_cache(maxsize=4_096)
def _price(tag: PriceTag) -> Price:
    return Price(version=tag.version, input=tag.input, output=tag.output, cached=tag.cached)


def booked(decision: Decision, mark: bytes, *, offset: int) -> Booked:
    """Return what the books need of the decision that lies at ``offset``."""
    price = None if decision.arm is None else price_of(decision)
    return Booked(
        offset,
        decision.decision_id,
        decision.request_id,
        decision.budget,
        decision.arm,
        price,
        decision.reserved_nanousd,
        decision.decided_ms,
        decision.expires_ms,
        mark,
    )


def read_outcome(value: bytes | None) -> Outcome:
    """Return an outcome that can be booked; ``error`` is freed of what Postgres cannot store.

    Raises
    ------
    BadRecordError
        If the record is unreadable or reports more cached than prompt tokens.
    """
    outcome = decode(Outcome, value)
    usage = outcome.usage
    if usage is not None and usage.cached_tokens > usage.prompt_tokens:
        raise BadRecordError("range", "more cached_tokens than prompt_tokens")
    if outcome.error is not None and "\0" in outcome.error:
        outcome.error = outcome.error.replace("\0", "\N{REPLACEMENT CHARACTER}")
    return outcome


@functools.lru_cache(maxsize=16_384)
def root_of(budget: str) -> str:
    """Return the root of a budget path."""
    return budget.partition("/")[0]


def check_partition(key: bytes, partition: int, partitions: int) -> None:
    """Refuse a record whose key belongs to another partition, as the worker does.

    Raises
    ------
    BadRecordError
        If it does: a budget that lay in two partitions would have two owners.
    """
    home = home_partition(key, partitions)
    if home != partition:
        raise BadRecordError("wrong_partition", f"its key belongs to {home} of {partitions}")


def request_of(key: bytes | None, request_id: str) -> str:
    """Return the decision id of the request that an outcome with this key is about.

    A key that is no UTF-8 is an empty root, which no budget has.
    """
    try:
        root = (key or b"").decode()
    except UnicodeDecodeError:
        root = ""
    return decision_id(root, request_id)


def reported(
    outcome: Outcome, *, decision_id: str, offset: int, at_ms: int, clock_ms: int
) -> Reported:
    """Return what the books need of the outcome whose record lies at ``offset``.

    ``decision_id`` is that of the request that it is about.
    """
    usage = outcome.usage
    return Reported(
        offset=offset,
        request_id=outcome.request_id,
        decision_id=decision_id,
        named_decision_id=outcome.decision_id,
        at_ms=at_ms,
        clock_ms=clock_ms,
        prompt_tokens=None if usage is None else usage.prompt_tokens,
        completion_tokens=None if usage is None else usage.completion_tokens,
        cached_tokens=None if usage is None else usage.cached_tokens,
        billed_nanousd=outcome.cost_nanousd,
        reward=outcome.reward,
    )
