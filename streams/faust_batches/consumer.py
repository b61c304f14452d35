"""The consumer: one event per fetch and partition, and commits that wait for their reasons."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

from faust.transport.consumer import ensure_TP, ensure_TPset
from faust.transport.drivers.aiokafka import Consumer
from faust.types import TP
from faust.types.tuples import ConsumerMessage

from streams.faust_batches.errors import BatchStuckError
from streams.faust_batches.schema import RecordBatch
from streams.faust_batches.thread import BatchConsumerThread, BatchRebalanceListener, Records

if TYPE_CHECKING:
    from faust.types import EventT

    from streams.faust_batches.app import BatchApp

FETCH_TIMEOUT_S = 1.0


class BatchConsumer(Consumer):
    """Delivers record batches and commits what the app says.

    Partitions are *owned* from the moment their tables are restored and ``on_assigned`` returned
    until ``on_revoked`` returned. Only owned partitions are delivered and committed.
    """

    app: BatchApp
    RebalanceListener = BatchRebalanceListener
    _thread: BatchConsumerThread

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.owned: frozenset[TP] = frozenset()
        self._commit_lock = asyncio.Lock()
        self.epoch = 0
        self._queued: dict[TP, set[int]] = defaultdict(set)
        self._done: dict[TP, int] = {}

    def _new_consumer_thread(self) -> BatchConsumerThread:
        return BatchConsumerThread(self, loop=self.loop, beacon=self.beacon)

    # -- what is fetched

    def _publish_wanted(self) -> None:
        """Tell the fetching thread which partitions are neither paused nor full."""
        queued, queued_max = self._queued, self.app.queued_batches_max
        full = {tp for tp, offsets in queued.items() if len(offsets) >= queued_max}
        self._thread.want(frozenset(self._get_active_partitions()) - full)

    def pause_partitions(self, tps: Iterable[TP]) -> None:
        """Stop fetching from partitions."""
        super().pause_partitions(tps)
        self._publish_wanted()

    def resume_partitions(self, tps: Iterable[TP]) -> None:
        """Fetch from partitions again."""
        super().resume_partitions(tps)
        self._publish_wanted()

    def on_buffer_full(self, tp: TP) -> None:
        """Call when a topic that is not delivered in batches fills its agent's queue."""
        super().on_buffer_full(tp)
        self._publish_wanted()

    def on_buffer_drop(self, tp: TP) -> None:
        """Call when that queue has room again."""
        super().on_buffer_drop(tp)
        self._publish_wanted()

    def stop_flow(self) -> None:
        """Deliver nothing more, also not what is being fetched now."""
        self.epoch += 1
        super().stop_flow()
        self._thread.wake()

    def queued_batches(self, tp: TP) -> int:
        """Return how many batches of a partition were delivered and are not finished."""
        return len(self._queued[tp])

    # -- what is delivered

    async def _drain_messages(self, fetcher: Any) -> None:
        try:
            while not (self.should_stop or fetcher.should_stop):
                if not self.flow_active:
                    await self.wait(self.can_resume_flow)  # type: ignore[arg-type]
                epoch = self.epoch
                records = await self._thread.fetch(FETCH_TIMEOUT_S, epoch)
                await self._deliver(records, epoch)
        except self.consumer_stopped_errors:
            if not self.app.should_stop:
                raise
        except asyncio.CancelledError:
            if not self.app.should_stop:
                raise

    async def _deliver(self, records: Records, epoch: int) -> None:
        for key, found in records.items():
            tp = ensure_TP(key)
            # Records dropped here are fetched again: a seek of all partitions follows
            # every stopped flow.
            if self.epoch != epoch:
                return
            self.app.monitor.track_tp_end_offset(tp, self.highwater(tp))
            if tp.topic in self.app.batch_topics:
                await self._deliver_batch(tp, RecordBatch(found))
            else:
                for record in found:
                    if self.epoch == epoch:
                        await self._deliver_record(tp, self._to_message(tp, record))

    async def _deliver_batch(self, tp: TP, batch: RecordBatch) -> None:
        last = batch[-1]
        message = ConsumerMessage(
            tp.topic,
            tp.partition,
            last.offset,
            last.timestamp / 1000,
            last.timestamp_type,
            [],
            None,
            cast("bytes", batch),  # Any value will do for Faust, but its annotation.
            None,
            0,
            0,
            tp,
            # Without the generation the stream silently skips the event.
            generation_id=self.app.consumer_generation_id,
        )
        self._queued[tp].add(last.offset)
        self._publish_wanted()
        await self.wait_first(self.callback(message), self.suspend_flow.wait())

    async def _deliver_record(self, tp: TP, message: ConsumerMessage) -> None:
        read, offset = self._read_offset[tp], message.offset
        if read is not None and offset < read:
            return
        if read and offset - read > 1 and self.app.topics.acks_enabled_for(tp.topic):
            await self._add_gap(tp, read + 1, offset - 1)
        if self._commit_every is not None and self._n_acked >= self._commit_every:
            self._n_acked = 0
            await self.commit()
        await self.wait_first(self.callback(message), self.suspend_flow.wait())
        self._read_offset[tp] = offset

    def on_batch_done(self, event: EventT[Any]) -> None:
        """Call when an agent's body has finished a batch."""
        message = event.message
        if message.generation_id == self.app.consumer_generation_id:
            self._queued[message.tp].discard(message.offset)
            self._done[message.tp] = cast("RecordBatch", event.value).next_offset
            self._publish_wanted()

    async def wait_idle(self, timeout: float) -> None:
        """Wait until no agent is inside a batch; raise :class:`BatchStuckError` if one stays."""
        deadline = monotonic() + timeout
        while True:
            self._clean_unacked_messages()
            waiting = [f"{m.topic}/{m.partition}@{m.offset}" for m in self._unacked_messages]
            if not waiting:
                return
            if monotonic() > deadline:
                raise BatchStuckError(waiting, timeout)
            await self._wait_for_ack(timeout=1)

    # -- where reading begins

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """Seek every partition that is not a changelog's to its committed offset."""
        return await self._thread.seek_to_committed()

    async def perform_seek(self) -> None:
        """Seek to the committed offsets, and count from there."""
        committed = await self.seek_to_committed()
        for tp, offset in committed.items():
            self._read_offset[tp] = offset or None
            self._committed_offset[tp] = offset or None

    async def read_changelogs(self, partitions: frozenset[TP]) -> tuple[Records, Mapping[TP, int]]:
        """Return some records of these changelog partitions, and the positions after them."""
        return await self._thread.read(partitions)

    # -- what is committed

    def finished_position(self, tp: TP) -> int | None:
        """Return the offset after the last batch that the agent's body finished, if any."""
        return self._done.get(tp)

    async def commit(self, topics: Any = None, start_new_transaction: bool = True) -> bool:
        """Commit what may be committed now.

        Faust's own lets a second caller go home when a commit is under way, although that one
        may have looked at the positions before they moved.
        """
        if self.app.client_only:
            return False
        async with self._commit_lock:
            return bool(
                await self.force_commit(topics, start_new_transaction=start_new_transaction)
            )

    def _filter_tps_with_pending_acks(self, topics: Any = None) -> Iterator[TP]:
        batch_topics = self.app.batch_topics
        acked = [tp for tp in self._acked if tp.topic not in batch_topics]
        ours = [tp for tp in self.owned if tp.topic in batch_topics]
        for tp in acked + ours:
            if topics is None or tp in topics or tp.topic in topics:
                yield tp

    def _new_offset(self, tp: TP) -> int | None:
        if tp.topic not in self.app.batch_topics:
            return super()._new_offset(tp)
        # The stream goes on noting acks of batches, which nobody needs.
        self._acked.pop(tp, None)
        self._acked_index.pop(tp, None)
        return self.app.commit_positions(tp) if tp in self.owned else None

    async def _commit_offsets(
        self, offsets: Mapping[TP, int], start_new_transaction: bool = True
    ) -> bool:
        assigned = self.assignment()
        offsets = {tp: offset for tp, offset in offsets.items() if tp in assigned}
        if not offsets:
            return False
        # An offset must never be durable before the table values that it stands for.
        await self.app.producer.flush()
        if not await self._commit(offsets):
            return False
        self._committed_offset.update(offsets)
        self.app.monitor.on_tp_commit(offsets)
        return True

    # -- membership

    def own(self, partitions: frozenset[TP]) -> None:
        """Begin to deliver and commit these partitions."""
        self.owned = partitions

    def is_member(self) -> bool:
        """Return whether the coordinator still knows us in the app's generation."""
        return self._thread.generation() == self.app.consumer_generation_id

    def heartbeat_age_s(self) -> float:
        """Return how long ago the coordinator was last known to count us in."""
        return monotonic() - self._thread.heartbeat_at

    async def confirm_membership(self) -> bool:
        """Return whether this worker may still write for its partitions.

        After a pause longer than the session timeout (a stopped process, a suspended machine)
        somebody else may own them, and we only learn it from the next heartbeat: wait for it.
        """
        while self.is_member():
            if self.heartbeat_age_s() < self.app.conf.broker_session_timeout:
                return True
            if self.should_stop:
                break
            await asyncio.sleep(0.05)
        return False

    # -- rebalancing

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Let the app finish, flush and commit, and only then forget the partitions."""
        tps = ensure_TPset(revoked)
        await self._on_partitions_revoked(tps)
        if self.app.should_stop:
            await self.app.release_partitions()
        if self._active_partitions is not None:
            self._active_partitions.difference_update(tps)
        self._paused_partitions.difference_update(tps)
        self.forget(tps)

    def forget(self, partitions: Iterable[TP]) -> None:
        """Drop all bookkeeping of partitions that were given up."""
        self.owned = frozenset()
        for tp in partitions:
            for book in (self._gap, self._acked, self._acked_index, self._queued, self._done):
                book.pop(tp, None)
            self._read_offset.pop(tp, None)
            self._committed_offset.pop(tp, None)
        self._publish_wanted()

    async def wait_empty(self) -> None:
        """Finish what agents have begun, and commit it."""
        await self.app.release_partitions()
        await self.commit()
