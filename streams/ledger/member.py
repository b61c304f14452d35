"""One member of the sinks' group: what it holds, reads and flushes, step by step."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from math import inf
from typing import Any, TypeVar

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import KafkaError

from streams.failpoints import pass_point
from streams.ledger.database import describe, is_transient
from streams.ledger.errors import (
    LedgerFencedError,
    LedgerGapError,
    LedgerHaltError,
    LedgerTopicsError,
)
from streams.ledger.heads import HeadPublisher
from streams.ledger.inbox import Inbox, Message
from streams.ledger.stand_back import StandBack
from streams.ledger.threads import run_in_thread
from streams.ledger.writer import LedgerWriter

log = logging.getLogger(__name__)

_T = TypeVar("_T")
InThread = Callable[[Callable[[], Any]], Coroutine[Any, Any, Any]]
"""Makes a call that blocks beside the event loop, as :func:`run_in_thread` does."""

FLUSH_MAX = 10_000
"""Records that are read at once, and flushed."""
HELD_MAX = 2 * FLUSH_MAX
"""Records in hand from which on no outcomes are read: what is held is one reading more at most."""
LINGER_S = 0.1
"""How long to wait after a smaller batch: a commit costs the same for one record as for many."""
STOP_S = 5.0
"""How long Kafka, or a step that is in hand at the end, may take."""
BACKOFF_MAX_S = 5.0
COMMIT_S = 1.0
"""How often the group's offsets are committed, which only lag dashboards read."""


class Sink(ConsumerRebalanceListener):  # type: ignore[misc]
    """One member of the group: the partitions it holds and what it has read of them."""

    def __init__(
        self,
        consumer: AIOKafkaConsumer,
        writer: LedgerWriter,
        *,
        decisions: str,
        outcomes: str,
        accept_gaps: bool,
        heads: HeadPublisher | None = None,
        in_thread: InThread = run_in_thread,
    ) -> None:
        self.halted: dict[int, LedgerHaltError] = {}
        self.busy = False
        self._consumer = consumer
        self._writer = writer
        self._topics = (decisions, outcomes)
        self._accept_gaps = accept_gaps
        self._heads = heads
        self._in_thread = in_thread
        self._inboxes: dict[int, Inbox] = {}
        self._in_flight: asyncio.Future[Any] | None = None
        self._stand_back = StandBack()
        # Loop times: from when on to try again, to commit.
        self._retry_at = self._commit_at = 0.0
        self._backoff_s = 0.0

    def join(self) -> None:
        """Subscribe."""
        self._consumer.subscribe(list(self._topics), listener=self)

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Let go of everything; a flush in flight may end, later ones would be fenced off."""
        self._inboxes.clear()
        self.halted.clear()
        self._stand_back.clear()
        if self._in_flight is not None:
            await asyncio.wait([self._in_flight], timeout=3.0)

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Hold the partitions back until they are claimed in the ledger."""
        self._consumer.pause(*assigned)

    async def step(self) -> None:
        """Claim what is new, read, and flush what was read."""
        try:
            if _now() >= self._retry_at:
                await self._claim()
                await self._flush()
                self._backoff_s = 0.0
            self._set_paused()
            got = await self._consumer.getmany(
                *self._to_read(), timeout_ms=int(LINGER_S * 1_000), max_records=FLUSH_MAX
            )
            await self._take(got)
            if not self._failing:
                await self._flush()
            await self._commit()
            await self._publish()
        except Exception as error:
            if not (is_transient(error) or isinstance(error, KafkaError)):
                raise
            self._back_off(error)
            return
        if self._waiting() < FLUSH_MAX // 2:
            await asyncio.sleep(LINGER_S)

    async def leave(self) -> None:
        """Flush what was read, if the database answers, and commit."""
        if not self._failing:
            try:
                await self._flush(patient=False)
            except Exception as error:
                if not is_transient(error):
                    raise
                log.warning("not flushed: %s; it will be read again", describe(error))
        self._commit_at = 0.0
        await self._commit()
        await self._publish(at_once=True)

    def _waiting(self) -> int:
        """Return how many records the broker is known to have that were not read yet."""
        # A rebalance may have taken partitions away that are still in hand.
        assigned = self._consumer.assignment()
        wanted = [place for inbox in self._inboxes.values() for place in inbox.nexts.items()]
        return sum(
            max((self._consumer.highwater(tp) or 0) - at, 0) for tp, at in wanted if tp in assigned
        )

    def _to_read(self) -> list[TopicPartition]:
        """Return what to read next; outcomes only as long as few wait for their decisions."""
        assigned, inboxes = self._consumer.assignment(), self._inboxes.values()
        is_full = sum(inbox.size for inbox in inboxes) >= HELD_MAX
        wanted = [tp for inbox in inboxes for tp in inbox.ask(is_full=is_full)]
        return [tp for tp in wanted if tp in assigned]

    @property
    def _failing(self) -> bool:
        return self._backoff_s > 0.0

    def _back_off(self, error: Exception) -> None:
        self._backoff_s = min(max(2 * self._backoff_s, 0.05), BACKOFF_MAX_S)
        self._retry_at = _now() + self._backoff_s
        self._writer.counts.retries += 1
        log.warning("trying again in %.2f s: %s", self._backoff_s, describe(error))

    async def _claim(self) -> None:
        partitions = {tp.partition for tp in self._consumer.assignment()}
        for partition in sorted(partitions - self._inboxes.keys() - self.halted.keys()):
            if not self._stand_back.may_claim(partition, _now()):
                continue
            tps = [TopicPartition(topic, partition) for topic in self._topics]
            missing = set(tps) - self._consumer.assignment()
            if len(missing) == 1:
                raise LedgerTopicsError(f"only one of {tps} is assigned: their counts differ")
            if missing:
                # A rebalance has begun meanwhile.
                continue
            # Not the count at the start: topics may have grown, which moves keys.
            count = len(self._consumer.partitions_for_topic(self._topics[0]))
            claim = partial(self._writer.claim, partition, partitions=count)
            inbox = Inbox(await self._run(claim), self._topics)
            log.info(
                "partition %d: epoch %d, decisions from %d, outcomes from %d",
                partition,
                inbox.unit.epoch,
                *inbox.nexts.values(),
            )
            first, end = await self._log_bounds(tps)
            for tp in tps:
                self._consumer.seek(tp, inbox.nexts[tp])
            self._inboxes[partition] = inbox
            for tp in tps:
                await self._check_bounds(inbox, tp, first[tp], end[tp])

    async def _log_bounds(
        self, tps: Iterable[TopicPartition]
    ) -> tuple[dict[TopicPartition, int], dict[TopicPartition, int]]:
        tps = list(tps)
        first = await self._consumer.beginning_offsets(tps)
        return first, await self._consumer.end_offsets(tps)

    async def _check_bounds(self, inbox: Inbox, tp: TopicPartition, first: int, end: int) -> None:
        """Halt the partition if its next record cannot be had any more."""
        wanted = inbox.nexts[tp]
        if end < wanted:
            found = f"the log ends at {end}: it was cut or recreated"
        elif first > wanted and not self._accept_gaps:
            found = f"the log starts at {first}: records were deleted unread"
        else:
            return
        await self._halt(inbox, LedgerGapError(tp.topic, tp.partition, wanted=wanted, found=found))

    async def _halt(self, inbox: Inbox, error: LedgerHaltError) -> None:
        log.error("partition %d stands still: %s", error.partition, error)
        self.halted[error.partition] = error
        self._inboxes.pop(error.partition, None)
        self._set_paused()
        await self._run(partial(self._writer.halt, inbox.unit, str(error)))

    async def _take(self, got: dict[TopicPartition, list[Message]]) -> None:
        for tp, messages in got.items():
            inbox = self._inboxes.get(tp.partition)
            if inbox is None:
                continue
            wanted = inbox.put(tp, messages, now_s=_now())
            if wanted is None:
                continue
            self._writer.counts.gaps += 1
            log.info("%s[%d]: reading again from %d", tp.topic, tp.partition, wanted)
            self._consumer.seek(tp, wanted)
            first, end = await self._log_bounds([tp])
            await self._check_bounds(inbox, tp, first[tp], end[tp])
            inbox.miss(tp, wanted)

    async def _flush(self, *, patient: bool = True) -> None:
        now_s = _now() if patient else inf
        held = [(inbox, inbox.batch(now_s=now_s)) for inbox in self._inboxes.values()]
        for number, (inbox, batch) in enumerate(held, 1):
            partition = inbox.unit.partition
            following = (held[number][0].unit, held[number][1]) if number < len(held) else None
            while batch or inbox.unit.behind:
                if self._inboxes.get(partition) is not inbox:
                    break
                flush = partial(self._writer.flush, inbox.unit, batch, following=following)
                try:
                    await self._run(flush)
                except LedgerHaltError as error:
                    await self._halt(inbox, error)
                    break
                except LedgerFencedError as error:
                    log.warning("fenced off: %s", error)
                    self._inboxes.pop(partition, None)
                    self._stand_back.fenced(partition, _now())
                    break
                pass_point("sink.after_flush")
                if batch:
                    self._stand_back.booked(partition)
                inbox.settle()
                batch = inbox.batch(now_s=now_s)

    async def _run(self, call: Callable[[], _T]) -> _T:
        """Make a call to the database in a thread, so that heartbeats go on."""

        def work() -> _T:
            try:
                return call()
            finally:
                self.busy = False

        self.busy = True
        in_flight: asyncio.Future[_T] = asyncio.ensure_future(self._in_thread(work))
        self._in_flight = in_flight
        try:
            return await in_flight
        finally:
            self._in_flight = None

    async def _publish(self, *, at_once: bool = False) -> None:
        if self._heads is not None:
            links = [inbox.unit.link for inbox in self._inboxes.values()]
            await self._heads.publish(links, at_once=at_once)

    def _set_paused(self) -> None:
        assigned = self._consumer.assignment()
        running = {tp for tp in assigned if tp.partition in self._inboxes and not self._failing}
        paused = self._consumer.paused()
        self._consumer.pause(*(assigned - running - paused))
        self._consumer.resume(*(running & paused))

    async def _commit(self) -> None:
        if _now() < self._commit_at:
            return
        self._commit_at = _now() + COMMIT_S
        offsets = {
            tp: offset for inbox in self._inboxes.values() for tp, offset in inbox.booked().items()
        }
        if offsets:
            try:
                await asyncio.wait_for(self._consumer.commit(offsets), STOP_S)
            except (KafkaError, TimeoutError) as error:
                log.debug("the group's offsets were not committed: %s", error)


def _now() -> float:
    return asyncio.get_running_loop().time()
