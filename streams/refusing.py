"""Dead letters of one partition: each refused record gets one, whatever is killed."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from dataclasses import dataclass, field

from policy.settle import Verdict
from policy.state import State
from streams import topics
from streams.log import LogReader
from streams.metrics import Metrics
from streams.publisher import Outbox
from streams.records import BadRecordError, DeadLetter, decode, encode

logger = logging.getLogger(__name__)

KNOWN_DEAD_MAX = 10_000
"""How many of the last dead letters are looked at, so that none is written twice."""
HELD_MAX = 1_000
"""How many dead letters wait for the decisions before them."""
_DETAIL_MAX = 400

Mark = tuple[str, int]
"""What is told of a record instead of its content: its SHA-256 in hex, and its size."""


def mark_of(value: bytes | None) -> Mark:
    """Return the mark of a record's value."""
    return hashlib.sha256(value or b"").hexdigest(), len(value or b"")


@dataclass(slots=True, kw_only=True)
class DeadLetters:
    """Writes the dead letters of a partition, each once ``decisions`` has arrived before it.

    What was decided and never arrived is decided again, perhaps otherwise, and then the record may
    be a good one.

    ``known`` are the places of the letters that a former owner wrote: after a kill a record is
    read again, but its letter is there already. ``parked`` holds the marks of outcomes that wait
    for their decision, by offset: their content is gone when their time is over.
    """

    partition: int
    outbox: Outbox
    decisions: Outbox
    metrics: Metrics
    known: set[tuple[str, int]]
    parked: dict[int, Mark] = field(default_factory=dict)
    _held: list[tuple[bytes, bytes]] = field(default_factory=list)
    _sending: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def refuse(
        self, topic: str, offset: int, mark: Mark, verdict: Verdict, *, at_ms: int
    ) -> None:
        """Write the dead letter of a record of this partition, once; :meth:`flush` sends it."""
        if (topic, offset) in self.known:
            return
        self.metrics.dead_letters.labels(topic, verdict.reason).inc()
        sha256, size = mark
        letter = DeadLetter(
            topic=topic,
            partition=self.partition,
            offset=offset,
            reason=verdict.reason,
            detail=verdict.detail[:_DETAIL_MAX],
            sha256=sha256,
            size=size,
            at_ms=at_ms,
        )
        key = f"{topic}/{self.partition}/{offset}".encode()
        self._held.append((key, encode(letter)))
        if len(self._held) >= HELD_MAX:
            await self._send()

    async def flush(self) -> None:
        """Return when the dead letters of all that was refused before are acknowledged."""
        await self._send()
        await self.outbox.flush()

    async def _send(self) -> None:
        async with self._sending:
            # Others may come while we wait, after decisions that are not waited for.
            count = len(self._held)
            await self.decisions.flush()
            held, self._held = self._held[:count], self._held[count:]
            if held:
                keys, values = zip(*held, strict=True)
                await self.outbox.send(None, values, keys=keys)

    async def refuse_parked(self, offset: int, verdict: Verdict, *, at_ms: int) -> None:
        """Write the dead letter of an outcome that was parked."""
        await self.refuse(topics.OUTCOMES, offset, self.parked.pop(offset), verdict, at_ms=at_ms)

    def forget_released(self, state: State) -> None:
        """Forget the marks of the outcomes that wait no longer."""
        late = {arrival.offset for arrival in state.late}
        for offset in [o for o in self.parked if o not in state.parked and o not in late]:
            del self.parked[offset]


async def known_dead(reader: LogReader, number: int) -> set[tuple[str, int]]:
    """Return the places that the last dead letters of a partition are about."""
    first, end = await reader.bounds(topics.DEAD_LETTERS, number)
    known = set()
    start = max(first, end - KNOWN_DEAD_MAX)
    async for records in reader.read(topics.DEAD_LETTERS, number, start, end):
        for record in records:
            try:
                letter = decode(DeadLetter, record.value)
            except BadRecordError as exc:
                logger.warning("dead letter %s/%s is none: %s", number, record.offset, exc)
            else:
                known.add((letter.topic, letter.offset))
    return known
