"""The thread that talks to the broker: fetching, seeking and group membership."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any

from aiokafka.consumer.group_coordinator import OffsetCommitRequest
from aiokafka.errors import ConsumerStoppedError
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread, ConsumerRebalanceListener
from faust.types import TP
from mode.threads import MethodQueue, QueueServiceThread

from streams.faust_batches.fetch_rest import FetchRest
from streams.stopping import stop_consumer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from streams.faust_batches.consumer import BatchConsumer

Records = Mapping[TP, list[Any]]

FETCH_WAIT_MS = 100
"""How long the broker may keep a fetch for which it has nothing. A partition that was full when
the fetch was sent is not in it, and must wait for the next one."""
PREFETCH_BACKOFF_S = 0.01
"""How long what is fetched and not taken keeps aiokafka from fetching from the other partitions."""


class BatchRebalanceListener(ConsumerRebalanceListener):
    """Notes that an assignment is as good as a heartbeat."""

    async def on_partitions_assigned(self, assigned: Iterable[Any]) -> None:
        """Call when the coordinator assigned partitions."""
        self._thread.heartbeat_at = monotonic()  # type: ignore[attr-defined]
        await super().on_partitions_assigned(assigned)


class BatchConsumerThread(AIOKafkaConsumerThread):
    """Fetches only what is wanted at the moment of fetching, never from an emptied set."""

    consumer: BatchConsumer
    heartbeat_at: float = 0.0
    _wanted: frozenset[TP] = frozenset()
    _wake: asyncio.Event
    _rest: FetchRest | None = None
    _positions: asyncio.Lock
    """Held by whatever moves positions, so that no fetch that began before a seek ends after it."""

    async def on_start(self) -> None:
        """Connect, and remember from now on when the coordinator last answered a heartbeat."""
        self._wake = asyncio.Event()
        self._positions = asyncio.Lock()
        await super().on_start()
        consumer = self._ensure_consumer()
        fetcher = consumer._fetcher
        fetcher._prefetch_backoff = PREFETCH_BACKOFF_S
        self._rest = FetchRest(self.consumer.is_busy, self.thread_loop)
        fetcher._proc_fetch_request = self._rested(self._rest, fetcher._proc_fetch_request)
        coordinator = consumer._coordinator
        # aiokafka keeps the time of the last good heartbeat in a local variable.
        coordinator._do_heartbeat = self._noting_heartbeats(coordinator._do_heartbeat)

    async def on_thread_stop(self) -> None:
        """Disconnect."""
        # Faust's own would stop the consumer in the way that this one goes around.
        await QueueServiceThread.on_thread_stop(self)
        if self._consumer is not None:
            await stop_consumer(self._consumer)

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        # Faust says 1.5 s, and lets nobody say otherwise.
        consumer._fetch_max_wait_ms = FETCH_WAIT_MS
        return consumer

    @staticmethod
    def _rested(
        rest: FetchRest, fetch: Callable[..., Awaitable[bool]]
    ) -> Callable[..., Awaitable[bool]]:
        async def rested(*args: Any) -> bool:
            # Its positions stay right: only what is fetched moves them, or a seek, after which
            # aiokafka drops the answer.
            try:
                await rest.before_fetch()
            except asyncio.CancelledError:
                # As a fetch of aiokafka ends: who stops it takes this for its own cancellation.
                return False
            return await fetch(*args)

        return rested

    def end_rest(self) -> None:
        """Let a fetch go on that waits because agents are at work; safe in the main thread."""
        if self._rest is not None:
            self._rest.end()

    def _noting_heartbeats(self, beat: Callable[[], Awaitable[bool]]) -> Callable[[], Any]:
        async def do_heartbeat() -> bool:
            sent_at = monotonic()
            known = await beat()
            if known:
                self.heartbeat_at = sent_at
            return known

        return do_heartbeat

    @property
    def method_queue(self) -> MethodQueue:
        """Return the queue of calls; a fetch waiting for records must not hold up commits."""
        if self._method_queue is None:
            self._method_queue = MethodQueue(
                num_workers=4, loop=self.thread_loop, beacon=self.beacon
            )
        return self._method_queue

    def generation(self) -> int | None:
        """Return the group generation that this member is in; None when it was thrown out."""
        generation: int = self._ensure_consumer()._coordinator.generation
        return None if generation == OffsetCommitRequest.DEFAULT_GENERATION_ID else generation

    def want(self, partitions: frozenset[TP]) -> None:
        """Fetch from these partitions from now on; safe to call from the main thread."""
        if partitions != self._wanted:
            self._wanted = partitions
            self.wake()

    def wake(self) -> None:
        """Let a waiting fetch look again at what is wanted."""
        if self._consumer is not None:
            self.thread_loop.call_soon_threadsafe(self._wake.set)

    async def fetch(self, timeout: float, epoch: int) -> Records:
        """Fetch from the wanted partitions for at most ``timeout``.

        What ``consumer.receive`` does not keep is returned as soon as there is some. When the
        flow was stopped since ``epoch``, nothing is taken.
        """
        records: Records = await self.call_thread(self._fetch, timeout, epoch)
        return records

    async def _fetch(self, timeout: float, epoch: int) -> Records:
        consumer = self._ensure_consumer()
        fetcher = consumer._fetcher
        deadline = monotonic() + timeout
        async with self._positions:
            with fetcher._subscriptions.fetch_context():
                while self.consumer.epoch == epoch:
                    if consumer._closed or fetcher._closed:
                        raise ConsumerStoppedError
                    self._wake.clear()
                    # An immutable copy: aiokafka takes an empty set for "all partitions", and
                    # the main thread changes its own set whenever it likes.
                    wanted = self.consumer.room(self._wanted)
                    if wanted:
                        records: Records = await fetcher.fetched_records(
                            wanted, timeout=0, max_records=consumer._max_poll_records
                        )
                        rest = self.consumer.receive(records, epoch)
                        if rest:
                            return rest
                        if records:
                            continue
                    remaining = deadline - monotonic()
                    if remaining <= 0:
                        break
                    await self._wait_for_records(fetcher if wanted else None, remaining)
        return {}

    async def _wait_for_records(self, fetcher: Any, timeout: float) -> None:
        waiters = [asyncio.ensure_future(self._wake.wait())]
        if fetcher is not None:
            waiters.append(fetcher._create_fetch_waiter())
        try:
            done, _ = await asyncio.wait(
                waiters, timeout=timeout, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            for waiter in waiters:
                waiter.cancel()
        for waiter in done:
            waiter.result()

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """Seek every partition but the changelogs' to where the group committed, else to the start.

        aiokafka leaves a partition without a committed offset where it is, although records that
        nobody has seen may have been fetched from it before the last rebalance.
        """
        result: Mapping[TP, int] = await self.call_thread(self._seek_to_committed)
        return result

    async def _seek_to_committed(self) -> Mapping[TP, int]:
        consumer = self._ensure_consumer()
        changelogs = self.app.tables.changelog_topics
        streams = [tp for tp in consumer.assignment() if tp.topic not in changelogs]
        if not streams:
            return {}
        async with self._positions:
            committed = await consumer.seek_to_committed(*streams)
            fresh = [tp for tp, offset in committed.items() if not offset]
            if fresh:
                await consumer.seek_to_beginning(*fresh)
        return {TP(tp.topic, tp.partition): offset for tp, offset in committed.items()}

    async def _seek_wait(self, consumer: Any, partitions: Mapping[TP, int]) -> None:
        async with self._positions:
            await super()._seek_wait(consumer, partitions)

    async def read(self, partitions: frozenset[TP]) -> tuple[Records, Mapping[TP, int]]:
        """Return some records of these partitions and the positions after them."""
        result: tuple[Records, Mapping[TP, int]] = await self.call_thread(self._read, partitions)
        return result

    async def _read(self, partitions: frozenset[TP]) -> tuple[Records, Mapping[TP, int]]:
        consumer = self._ensure_consumer()
        fetcher = consumer._fetcher
        async with self._positions:
            with fetcher._subscriptions.fetch_context():
                records = await fetcher.fetched_records(partitions, timeout=1.0)
            # The position, not the last record, says how far we are: the end of a changelog
            # may be a transaction marker.
            return records, {tp: await consumer.position(tp) for tp in partitions}
