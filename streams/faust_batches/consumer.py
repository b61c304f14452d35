"""The consumer: record batches, and commits that wait for their reasons."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from time import monotonic
from typing import Any

from faust.transport.consumer import ensure_TPset
from faust.types import TP

from streams.faust_batches.delivery import DeliveringConsumer
from streams.faust_batches.errors import BatchStuckError
from streams.faust_batches.thread import Records


class BatchConsumer(DeliveringConsumer):
    """Delivers record batches and commits what the app says.

    Partitions are *owned* from the moment their tables are restored and ``on_assigned`` returned
    until ``on_revoked`` returned. Only owned partitions are delivered and committed.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.owned: frozenset[TP] = frozenset()
        self._commit_lock = asyncio.Lock()

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
            for book in (self._gap, self._acked, self._acked_index, self._done):
                book.pop(tp, None)
            self._read_offset.pop(tp, None)
            self._committed_offset.pop(tp, None)
        self._publish_wanted()

    async def wait_empty(self) -> None:
        """Finish what agents have begun, and commit it."""
        await self.app.release_partitions()
        await self.commit()
