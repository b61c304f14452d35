"""What is fetched and delivered: the next batch when its agent is free."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

from faust.transport.consumer import ensure_TP, ensure_TPset
from faust.transport.drivers.aiokafka import Consumer
from faust.types import TP
from faust.types.tuples import ConsumerMessage

from streams.faust_batches.ahead import Ahead
from streams.faust_batches.schema import RecordBatch
from streams.faust_batches.thread import BatchConsumerThread, BatchRebalanceListener, Records

if TYPE_CHECKING:
    from faust.types import EventT

    from streams.faust_batches.app import BatchApp

FETCH_TIMEOUT_S = 1.0


class DeliveringConsumer(Consumer):
    """Delivers record batches: of each partition one at a time, of what came meanwhile."""

    app: BatchApp
    RebalanceListener = BatchRebalanceListener
    _thread: BatchConsumerThread

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._ahead = Ahead(
            records_max=self.app.conf.broker_max_poll_records or 1, linger_s=self.app.linger_s
        )
        self._alarms: dict[str, asyncio.TimerHandle] = {}
        self._done: dict[TP, int] = {}

    def _new_consumer_thread(self) -> BatchConsumerThread:
        return BatchConsumerThread(self, loop=self.loop, beacon=self.beacon)

    # -- what is fetched

    @property
    def epoch(self) -> int:
        """Return a number that grows whenever the flow is stopped."""
        return self._ahead.epoch

    def is_busy(self) -> bool:
        """Return whether an agent is at work; for the fetching thread."""
        return self._ahead.is_busy()

    def room(self, partitions: frozenset[TP]) -> frozenset[TP]:
        """Return of which of these more may be fetched; for the fetching thread."""
        return self._ahead.room(partitions)

    def receive(self, records: Records, epoch: int) -> Records:
        """Let records of batch topics wait for their agents; return the others.

        For the fetching thread, which goes on at once: a batch in the main thread takes longer
        than a fetch.
        """
        rest = {}
        arrived = []
        for key, found in records.items():
            tp = ensure_TP(key)
            if tp.topic in self.app.batch_topics:
                self._ahead.put(tp, found, epoch=epoch)
                arrived.append(tp)
            else:
                rest[tp] = found
        if arrived:
            self.loop.call_soon_threadsafe(self._arrived, arrived)
        return rest

    def _arrived(self, tps: Sequence[TP]) -> None:
        for tp in tps:
            self.app.monitor.track_tp_end_offset(tp, self.highwater(tp))
        for topic in {tp.topic for tp in tps}:
            self._hand_over_soon(topic)

    def _publish_wanted(self) -> None:
        """Tell the fetching thread which partitions are not paused."""
        self._thread.want(frozenset(self._get_active_partitions()))

    def pause_partitions(self, tps: Iterable[TP]) -> None:
        """Stop fetching from partitions."""
        super().pause_partitions(tps)
        self._publish_wanted()

    def resume_partitions(self, tps: Iterable[TP]) -> None:
        """Fetch from partitions again."""
        super().resume_partitions(tps)
        self._publish_wanted()
        for topic in {tp.topic for tp in ensure_TPset(tps)}:
            self._hand_over_soon(topic)

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
        self._ahead.clear()
        super().stop_flow()
        self._thread.wake()

    def waiting(self, tp: TP) -> int:
        """Return how many records of a partition were fetched and wait for their agent."""
        return self._ahead.count(tp)

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
            self.app.monitor.track_tp_end_offset(tp, self.highwater(tp))
            for record in found:
                # Records dropped here are fetched again: a seek of all partitions follows
                # every stopped flow.
                if self.epoch != epoch:
                    return
                await self._deliver_record(tp, self._to_message(tp, record))

    async def _hand_over(self, topic: str) -> None:
        """Give the agent of a topic what has waited longest, if it is done with what it had."""
        if not self.flow_active:
            return  # Asked again when that is over.
        now, among = monotonic(), self._get_active_partitions()
        taken = self._ahead.take(topic, among=among, at=now)
        if taken is not None:
            if taken.was_full:
                self._thread.wake()
            await self._deliver_batch(taken.tp, RecordBatch(taken.records))
            return
        if not self._ahead.is_busy():
            self._thread.end_rest()
        rests_s = self._ahead.rests_s(topic, among=among, at=now)
        if rests_s:
            self._set_alarm(topic, rests_s)

    def _set_alarm(self, topic: str, in_s: float) -> None:
        alarm = self._alarms.get(topic)
        if alarm is not None:
            if alarm.when() <= self.loop.time() + in_s:
                return
            alarm.cancel()
        self._alarms[topic] = self.loop.call_later(in_s, self._ring, topic)

    def _ring(self, topic: str) -> None:
        del self._alarms[topic]
        self._hand_over_soon(topic)

    def _hand_over_soon(self, topic: str) -> None:
        if topic in self.app.batch_topics and not self.should_stop:
            self.add_future(self._hand_over(topic))

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
            self._ahead.finished(message.tp, message.offset)
            self._done[message.tp] = cast("RecordBatch", event.value).next_offset
            self._hand_over_soon(message.tp.topic)
