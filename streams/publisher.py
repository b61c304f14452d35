"""Produces records in batches, one partition at a time, and knows what is not acknowledged yet."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaTimeoutError, ProducerFenced, UnknownTopicOrPartitionError

logger = logging.getLogger(__name__)

Headers = Sequence[tuple[str, bytes]]
BATCH_BYTES = 1 << 19
WIRE_TURNS = 6
"""Turns of the event loop from :meth:`Outbox.send` to the socket: our queue, the accumulator, the
sender and its request; four are enough, two are to spare."""


class OverlapError(Exception):
    """Another writer has written to a partition that this worker believed to own."""

    def __init__(self, topic: str, partition: int, expected: int, found: int) -> None:
        super().__init__(
            f"{topic}/{partition}: wrote at {found}, expected {expected}: another worker writes too"
        )


class FencedError(Exception):
    """A newer owner of a partition has shut out the one that this worker was."""

    def __init__(self, topic: str, partition: int, *, refused: int = 0) -> None:
        super().__init__(
            f"{topic}/{partition}: another worker has taken the partition over"
            + (f", {refused} batches were refused" if refused else "")
        )


def make_producer(kafka: str, *, request_timeout_ms: int = 60_000) -> AIOKafkaProducer:
    """Return the producer for everything that must not be lost; what it has taken it sends."""
    producer = AIOKafkaProducer(
        bootstrap_servers=kafka,
        acks="all",
        enable_idempotence=True,
        linger_ms=0,
        max_batch_size=BATCH_BYTES,
        max_request_size=4 * BATCH_BYTES,
        request_timeout_ms=request_timeout_ms,
    )
    # It would drop a batch of this age while no leader is known, as when the broker has been away
    # for longer and comes up. Its records have their numbers: late they still are at their place,
    # and dropped they would leave a hole.
    producer._message_accumulator._batch_ttl = math.inf
    return producer


async def to_the_wire() -> None:
    """Let producers send what they were given before the caller goes on.

    A caller that works through one batch after the other leaves them a turn of the loop after
    each, so that a batch reached the broker some batches later.
    """
    for _ in range(WIRE_TURNS):
        await asyncio.sleep(0)


@dataclass(slots=True)
class Outbox:
    """What one partition of one topic is sent; offsets are checked where they are foretold.

    The producer takes the next batch of a partition only once the former is on its way. Batches
    wait for that in a queue here, so that whoever made them goes on.
    """

    producer: AIOKafkaProducer
    topic: str
    partition: int
    pending_max: int = 16
    _queue: deque[tuple[Any, int | None]] = field(default_factory=deque)
    _pending: deque[tuple[asyncio.Future[Any], int | None]] = field(default_factory=deque)
    _pump: asyncio.Task[None] | None = None
    _acknowledged: int = 0

    async def send(
        self, key: bytes | None, values: Sequence[bytes], *, keys: Sequence[bytes] | None = None,
        headers: Sequence[Headers] | None = None, first_offset: int | None = None,
    ) -> None:  # fmt: skip
        """Send records; :meth:`flush` tells whether they arrived.

        With ``first_offset`` the records must be appended there. Waits while more than
        ``pending_max`` batches are not acknowledged.
        """
        # The broker puts its own time in; asking the clock for each record takes longer than that.
        now_ms = int(time.time() * 1_000)
        builder, begun = self.producer.create_batch(), 0
        for number, value in enumerate(values):
            own = key if keys is None else keys[number]
            more = list(headers[number]) if headers else []
            if builder.append(timestamp=now_ms, key=own, value=value, headers=more) is None:
                await self._send(builder, begun, first_offset)
                builder, begun = self.producer.create_batch(), number
                if builder.append(timestamp=now_ms, key=own, value=value, headers=more) is None:
                    raise ValueError(f"a record of {len(value)} bytes does not fit a batch")
        if builder.record_count():
            await self._send(builder, begun, first_offset)

    async def _send(self, builder: Any, begun: int, first_offset: int | None) -> None:
        builder.close()
        self._queue.append((builder, None if first_offset is None else first_offset + begun))
        if self._pump is None or self._pump.done():
            if self._pump is not None:
                self._pump.result()  # raises what ended it
            self._pump = asyncio.create_task(self._run())
        while len(self._queue) + len(self._pending) > self.pending_max:
            await self._settle_first()

    async def _run(self) -> None:
        while self._queue:
            builder, expected = self._queue[0]
            future = await self._taken(
                partial(self.producer.send_batch, builder, self.topic, partition=self.partition)
            )
            self._queue.popleft()
            self._pending.append((future, expected))

    async def _taken(self, hand_over: Callable[[], Awaitable[Any]]) -> Any:
        """Hand something over to the producer until it takes it; return its future.

        After its request timeout it refuses what it has no room for, or whose topic it has not
        heard of yet, because the broker is away. Nothing of that is sent, nor has a number.
        """
        while True:
            try:
                return await hand_over()
            except (KafkaTimeoutError, UnknownTopicOrPartitionError) as exc:
                logger.warning("%s/%s waits for Kafka: %r", self.topic, self.partition, exc)

    async def flush(self) -> None:
        """Return when all that was sent before is acknowledged, where it was foretold to lie."""
        sent = self._acknowledged + len(self._pending) + len(self._queue)
        while self._acknowledged < sent:
            await self._settle_first()

    async def broker_time(self, value: bytes) -> int:
        """Append a record and return when the broker says that it did."""
        future = await self._taken(
            partial(self.producer.send, self.topic, value, key=b"clock", partition=self.partition)
        )
        return int((await future).timestamp)

    async def _settle_first(self) -> None:
        if not self._pending:
            assert self._pump is not None
            # Not cancelled with whoever waits for it.
            await asyncio.shield(self._pump)
            return
        future, expected = self._pending[0]
        try:
            metadata = await future
        except ProducerFenced:
            refused = len(self._pending) + len(self._queue)
            raise FencedError(self.topic, self.partition, refused=refused) from None
        if self._pending and self._pending[0][0] is future:
            self._pending.popleft()
            self._acknowledged += 1
            if expected is not None and metadata.offset != expected:
                raise OverlapError(self.topic, self.partition, expected, metadata.offset)
