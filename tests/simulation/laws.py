"""The laws, checked on the logs of a simulation: plainly, sharing no bookkeeping with the core."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from policy.acceptance import is_accepted
from policy.calendar import window_start_ms
from policy.money import Price, call_cost_nanousd
from streams import topics
from streams.records import BadRecordError, DeadLetter, Decision, Outcome, decode
from tests.simulation.broker import Broker, Record


@dataclass(frozen=True, slots=True)
class Effective:
    """A decision that counts, with its place in its partition's log."""

    offset: int
    record: Decision
    round: tuple[int, int, int]


def effective(broker: Broker, partition: int) -> list[Effective]:
    """Return the decisions that count: of each request the one at the lowest offset.

    Each lies where its writer had foretold: nobody else wrote what lies before it.
    """
    first: dict[str, Effective] = {}
    before: tuple[int, int, int] | None = None
    foretold = 0
    for record in broker.records(topics.DECISIONS, partition):
        decision = decode(Decision, record.value)
        offsets = decision.offsets
        now = (offsets.decisions, offsets.batch, decision.decided_ms)
        foretold = foretold + 1 if now == before else offsets.decisions
        before = now
        assert foretold == record.offset, f"decision {record.offset} was to lie at {foretold}"
        placed = Effective(record.offset, decision, now)
        first.setdefault(decision.decision_id, placed)
    return list(first.values())


def check_topics(broker: Broker, partition: int, *, window: str, sent: dict[str, bytes]) -> None:
    """Each request has its decision, each bad record its dead letter, each cap held."""
    decisions = effective(broker, partition)
    by_offset = {e.record.offsets.request: e.record for e in decisions}
    requests = broker.logs[topics.REQUESTS, partition]
    decided = {e.record.request_id for e in decisions}
    letters = _letters(broker, partition)
    contents = {hashlib.sha256(value).digest(): name for name, value in sent.items()}
    for record in requests:
        name = contents.get(hashlib.sha256(record.value or b"").digest())
        if name is not None:
            assert name in decided, f"{record.offset}: {name} has no decision"
        decision = by_offset.get(record.offset)
        if decision is not None:
            continue
        first = next((d for d in decisions if name == d.record.request_id), None)
        copy = first is not None and requests[first.record.offsets.request].value == record.value
        assert copy or (topics.REQUESTS, record.offset) in letters, (
            f"request {record.offset} was neither decided nor refused: {record.value!r}"
        )
    _check_outcome_letters(broker, partition, decisions, letters)
    check_caps(broker, partition, decisions, window=window)


def _letters(broker: Broker, partition: int) -> dict[tuple[str, int], str]:
    """Return why records were refused, by their places."""
    found = [decode(DeadLetter, r.value) for r in broker.records(topics.DEAD_LETTERS, partition)]
    return {(letter.topic, letter.offset): letter.reason for letter in found}


def _check_outcome_letters(
    broker: Broker, partition: int, decisions: Sequence[Effective],
    letters: dict[tuple[str, int], str],
) -> None:  # fmt: skip
    """Each outcome that cannot be read has a dead letter, and none that counts is unknown."""
    by_request = {(_root(e.record), e.record.request_id): e.record for e in decisions}
    for record in broker.logs[topics.OUTCOMES, partition]:
        outcome, reason = _outcome(record), letters.get((topics.OUTCOMES, record.offset))
        if outcome is None:
            assert reason, f"outcome {record.offset} was not refused: {record.value!r}"
            continue
        decision = by_request.get(((record.key or b"").decode(), outcome.request_id))
        counts = decision is not None and is_accepted(
            decided_ms=decision.decided_ms, outcome_ms=record.timestamp
        )
        assert not (counts and reason == "unknown_request"), f"outcome {record.offset}: {decision}"


def _outcome(record: Record) -> Outcome | None:
    try:
        return decode(Outcome, record.value)
    except BadRecordError:
        return None


def first_usages(broker: Broker, partition: int, decisions: Sequence[Effective]) -> dict[str, int]:
    """Return the offset of the first usage that counts, by decision id."""
    by_request = {(_root(e.record), e.record.request_id): e.record for e in decisions}
    found: dict[str, int] = {}
    for record in broker.logs[topics.OUTCOMES, partition]:
        outcome = _outcome(record)
        if outcome is None or (outcome.usage is None and outcome.cost_nanousd is None):
            continue
        decision = by_request.get(((record.key or b"").decode(), outcome.request_id))
        if decision is None or decision.arm is None:
            continue
        if is_accepted(decided_ms=decision.decided_ms, outcome_ms=record.timestamp):
            found.setdefault(decision.decision_id, record.offset)
    return found


def _root(decision: Decision) -> str:
    return decision.budget.partition("/")[0]


def cost_nanousd(broker: Broker, partition: int, decision: Decision, offset: int) -> int:
    """Return what a call cost, by its usage at this offset."""
    outcome = decode(Outcome, broker.logs[topics.OUTCOMES, partition][offset].value)
    assert outcome.usage is not None and decision.price is not None
    tag = decision.price
    price = Price(version=tag.version, input=tag.input, output=tag.output, cached=tag.cached)
    return call_cost_nanousd(
        price, input_tokens=outcome.usage.prompt_tokens,
        output_tokens=outcome.usage.completion_tokens, cached_tokens=outcome.usage.cached_tokens,
    )  # fmt: skip


def check_caps(
    broker: Broker, partition: int, decisions: Sequence[Effective], *, window: str
) -> None:
    """At every decision of the log what is reserved and settled is what it says, and fits.

    Both are worked out anew for each decision, from all decisions before it and from the outcomes
    that they had seen.
    """
    usages = first_usages(broker, partition, decisions)
    costs = {
        e.record.decision_id: cost_nanousd(
            broker, partition, e.record, usages[e.record.decision_id]
        )
        for e in decisions
        if e.record.decision_id in usages
    }
    before: dict[str, list[Effective]] = defaultdict(list)
    seen = clock_ms = 0
    for placed in decisions:
        now = placed.record
        seen = max(seen, now.offsets.outcomes)
        clock_ms = max(clock_ms, now.decided_ms)
        for position in now.budgets:
            start_ms = window_start_ms(window, clock_ms)
            reserved, settled = (now.reserved_nanousd if now.arm else 0), 0
            for other in before[position.budget]:
                earlier = other.record
                if earlier.decided_ms < start_ms:
                    continue
                # What came before its decision takes effect after the round of that.
                told = usages.get(earlier.decision_id, seen) < seen and other.round != placed.round
                if told:
                    settled += costs[earlier.decision_id]
                elif earlier.expires_ms < clock_ms:
                    settled += earlier.reserved_nanousd
                else:
                    reserved += earlier.reserved_nanousd
            where = f"decision {placed.offset} ({now.request_id}), {position.budget}"
            if now.arm is not None:
                assert reserved + settled <= position.limit_nanousd, (
                    f"{where}: {reserved} + {settled} > {position.limit_nanousd}"
                )
            assert (position.reserved_nanousd, position.settled_nanousd) == (reserved, settled), (
                f"{where}: says {position.reserved_nanousd} and {position.settled_nanousd}, "
                f"the topics say {reserved} and {settled}"
            )
        if now.arm is not None:
            for position in now.budgets:
                before[position.budget].append(placed)
