"""Reads the topics of a partition once more, up to where the ledger stands, to check it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from streams.ledger.errors import LedgerTopicsError
from streams.ledger.reading import read_decision, read_outcome
from streams.ledger.reference import SeenDecision, SeenOutcome, home_of, identity_of
from streams.records import BadRecordError


@dataclass(slots=True, kw_only=True)
class Log:
    """What one partition of a topic holds below the ledger's cursor; ``end`` is where it ends."""

    start: int = 0
    end: int = 0
    records: int = 0
    dead: set[int] = field(default_factory=set)
    clock_ms: int = 0


class Reread:
    """Partition ``partition`` of decisions and of outcomes, ``topics`` being their names."""

    def __init__(self, topics: Mapping[str, str], partition: int) -> None:
        self.logs = {kind: Log() for kind in topics}
        self.decisions: list[SeenDecision] = []
        self.outcomes: list[SeenOutcome] = []
        self._topics = topics
        self._partition = partition

    async def read(self, consumer: AIOKafkaConsumer, nexts: Mapping[str, int]) -> None:
        """Read both topics up to the ledger's next offsets, or as far as there are records."""
        for kind, topic in self._topics.items():
            place = TopicPartition(topic, self._partition)
            consumer.assign([place])
            log = self.logs[kind]
            at = log.start = (await consumer.beginning_offsets([place]))[place]
            log.end = (await consumer.end_offsets([place]))[place]
            end = min(nexts[topic], log.end)
            count = len(consumer.partitions_for_topic(topic) or ())
            if not count:
                raise LedgerTopicsError(f"topic {topic} does not exist")
            consumer.seek(place, at)
            while at < end and await consumer.position(place) < end:
                for message in (await consumer.getmany(timeout_ms=500)).get(place, []):
                    if message.offset < end:
                        self._see(kind, message, count)

    def _see(self, kind: str, message: Any, count: int) -> None:
        log = self.logs[kind]
        log.records += 1
        log.clock_ms = max(log.clock_ms, message.timestamp)
        see = self._see_decision if kind == "decision" else self._see_outcome
        try:
            booked = see(message, count)
        except BadRecordError:
            booked = False
        if not booked:
            log.dead.add(message.offset)

    def _see_decision(self, message: Any, count: int) -> bool:
        decision, _ = read_decision(message.value)
        root = decision.budget.split("/")[0].encode()
        identity = identity_of(root, decision.request_id)
        if decision.decision_id != identity or home_of(root, count) != self._partition:
            return False
        self.decisions.append(SeenDecision(message.offset, identity, message.value, decision))
        return True

    def _see_outcome(self, message: Any, count: int) -> bool:
        outcome, key = read_outcome(message.value), message.key or b""
        if home_of(key, count) != self._partition:
            return False
        identity = identity_of(key, outcome.request_id)
        clock_ms = self.logs["outcome"].clock_ms
        self.outcomes.append(
            SeenOutcome(message.offset, identity, message.timestamp, clock_ms, outcome)
        )
        return True
