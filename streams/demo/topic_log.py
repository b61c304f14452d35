"""Everything that the topics hold at the end of a run, read once from their beginning."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256

from policy.money import Price, call_cost_nanousd
from streams import topics
from streams.log import LogReader
from streams.records import BadRecordError, DeadLetter, Decision, Outcome, Request, decode

Place = tuple[str, int, int]
"""Topic, partition, offset."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """What the checks need of one decision record."""

    partition: int
    offset: int
    record: Decision


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    """The first usage that was reported for a request."""

    partition: int
    offset: int
    outcome: Outcome

    def cost_nanousd(self, decision: Decision) -> int:
        """Return what the call cost at the price that its decision pinned."""
        if self.outcome.cost_nanousd is not None:
            return self.outcome.cost_nanousd
        assert decision.price is not None and self.outcome.usage is not None
        tag, usage = decision.price, self.outcome.usage
        price = Price(version=tag.version, input=tag.input, output=tag.output, cached=tag.cached)
        return call_cost_nanousd(
            price,
            input_tokens=usage.prompt_tokens,
            output_tokens=usage.completion_tokens,
            cached_tokens=usage.cached_tokens,
        )


@dataclass(slots=True, kw_only=True)
class TopicLog:
    """A run as its topics tell it.

    ``requests`` has the places of every readable request by id;
    ``decisions`` every decision record in order, copies too; ``usage`` the first usage of each
    request; ``digests`` the place of every record by topic and SHA-256.
    """

    requests: dict[str, list[Place]] = field(default_factory=dict)
    decisions: list[Decided] = field(default_factory=list)
    usage: dict[str, Used] = field(default_factory=dict)
    outcomes: int = 0
    letters: Counter[Place] = field(default_factory=Counter)
    reasons: dict[Place, str] = field(default_factory=dict)
    digests: dict[tuple[str, str], Place] = field(default_factory=dict)

    def effective(self) -> dict[str, Decided]:
        """Return the decision that counts for each request: the one at the lowest offset."""
        first: dict[str, Decided] = {}
        for decided in self.decisions:
            first.setdefault(decided.record.request_id, decided)
        return first


async def read_topics(kafka: str, digests: Sequence[str]) -> TopicLog:
    """Read requests, decisions, outcomes, the catalog and dead letters.

    ``digests`` are the SHA-256 of the records whose places are wanted.
    """
    log, wanted = TopicLog(), frozenset(digests)
    reader = LogReader(kafka)
    await reader.start()
    try:
        names = (
            topics.REQUESTS, topics.DECISIONS, topics.OUTCOMES, topics.CATALOG,
            topics.DEAD_LETTERS,
        )  # fmt: skip
        for topic in names:
            for partition in await reader.partitions(topic):
                first, end = await reader.bounds(topic, partition)
                async for records in reader.read(topic, partition, first, end):
                    for record in records:
                        _see(log, topic, partition, record.offset, record.value or b"", wanted)
    finally:
        await reader.stop()
    return log


def _see(
    log: TopicLog, topic: str, partition: int, offset: int, value: bytes, wanted: frozenset[str]
) -> None:
    place = (topic, partition, offset)
    digest = sha256(value).hexdigest()
    if digest in wanted:
        log.digests[topic, digest] = place
    if topic == topics.DECISIONS:
        record = decode(Decision, value)
        log.decisions.append(Decided(partition=partition, offset=offset, record=record))
    elif topic == topics.DEAD_LETTERS:
        letter = decode(DeadLetter, value)
        lay = (letter.topic, letter.partition, letter.offset)
        log.letters[lay] += 1
        log.reasons[lay] = letter.reason
    elif topic == topics.REQUESTS:
        _see_request(log, place, value)
    elif topic == topics.OUTCOMES:
        _see_outcome(log, partition, offset, value)


def _see_request(log: TopicLog, place: Place, value: bytes) -> None:
    try:
        request = decode(Request, value)
    except BadRecordError:
        return
    log.requests.setdefault(request.request_id, []).append(place)


def _see_outcome(log: TopicLog, partition: int, offset: int, value: bytes) -> None:
    try:
        outcome = decode(Outcome, value)
    except BadRecordError:
        return
    log.outcomes += 1
    if outcome.usage is not None or outcome.cost_nanousd is not None:
        used = Used(partition=partition, offset=offset, outcome=outcome)
        log.usage.setdefault(outcome.request_id, used)
