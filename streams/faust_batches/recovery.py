"""Taking partitions over: restore the tables, seek, ask the app, and only then let records flow."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Iterable, Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

from aiokafka.errors import IllegalStateError
from faust.tables.manager import TableManager
from faust.tables.recovery import Recovery
from faust.transport.consumer import ensure_TP
from faust.types import TP
from mode import Service

from streams.faust_batches.errors import (
    ChangelogMissingError,
    PartitionCountError,
    RestoreStalledError,
)
from streams.faust_batches.table import CheckpointTable

if TYPE_CHECKING:
    from streams.faust_batches.app import BatchApp

logger = logging.getLogger(__name__)

STALLED_S = 60.0


class BatchRecovery(Recovery):
    """Restores tables from whole batches of their changelogs.

    Faust resumes the stream partitions before it has sought them to the committed offsets,
    so that records are delivered twice or never. Here the flow stays stopped until the last
    seek is done; a rebalance that comes meanwhile cancels all of it.
    """

    app: BatchApp
    _taking_over: asyncio.Task[None] | None = None
    _writing: asyncio.Future[list[None]] | None = None
    restored_records: int = 0
    restored_s: float = 0.0

    async def on_rebalance(
        self,
        assigned: set[TP],
        revoked: set[TP],
        newly_assigned: set[TP],
        generation_id: int = 0,
    ) -> None:
        """Begin to take the assigned partitions over."""
        if generation_id != self.app.consumer_generation_id:
            return  # A newer assignment is on its way.
        self._generation_id = generation_id
        self.signal_recovery_start.set()

    @Service.task
    async def _restart_recovery(self) -> None:
        while not self.should_stop:
            if await self.wait_for_stopped(self.signal_recovery_start):  # type: ignore[arg-type]
                break
            self.signal_recovery_start.clear()
            task = self._taking_over = asyncio.ensure_future(self._take_over())
            await asyncio.wait([task])
            if task.cancelled():
                continue
            if (exc := task.exception()) is None:
                await self._on_taken_over()
            elif isinstance(exc, IllegalStateError):
                logger.info("Assignment changed while taking partitions over: %s", exc)
            else:
                self.app.fatal(exc)

    @Service.task
    async def _slurp_changelogs(self) -> None:
        """Nothing: changelog records do not come through the queue."""

    @Service.task
    async def _publish_stats(self) -> None:
        """Nothing: a restore is logged when it is done."""

    async def abandon(self) -> None:
        """Stop taking partitions over, because they were revoked meanwhile."""
        task = self._taking_over
        if task is not None and not task.done():
            task.cancel()
            await asyncio.wait([task])
        if self._writing is not None:
            await asyncio.wait([self._writing])

    async def on_stop(self) -> None:
        """Stop what is under way."""
        await self.abandon()

    async def _take_over(self) -> None:
        app, consumer = self.app, self.app.consumer
        generation = self._generation_id
        assigned = consumer.assignment()
        changelogs = {tp for tp in assigned if self._is_changelog_tp(tp)}
        streams = frozenset(assigned - changelogs)
        self._check_changelogs(streams, changelogs)
        await self._restore(frozenset(changelogs))
        if streams:
            await consumer.perform_seek()
            await consumer.seek_wait(await app.on_assigned(streams) or {})
        if app.consumer_generation_id != generation:
            return  # The next assignment begins anew.
        # From here on nothing waits, so that a rebalance finds either all of it or nothing.
        consumer.own(streams)
        self.completed.set()
        app.flow_control.resume()
        consumer.resume_partitions(streams)
        consumer.resume_flow()
        logger.info("Owning %s partitions in generation %s", len(streams), generation)

    async def _on_taken_over(self) -> None:
        app = self.app
        await cast("Service", app._fetcher).maybe_start()
        self.tables.on_actives_ready()
        self.tables.on_standbys_ready()
        app.on_rebalance_end()
        await app.on_rebalance_complete.send()

    def _check_changelogs(self, streams: frozenset[TP], changelogs: set[TP]) -> None:
        consumer = self.app.consumer
        missing = []
        for table in self.tables.values():
            topic = table.changelog_topic_name
            count = consumer.topic_partitions(topic)
            if count is not None and table.partitions and count != table.partitions:
                raise PartitionCountError(topic, count, table.partitions)
            sources = (tp for tp in streams if tp.topic in self.app.batch_topics)
            needed = {TP(topic, tp.partition) for tp in sources}
            missing += [f"{tp.topic}/{tp.partition}" for tp in sorted(needed - changelogs)]
        if missing:
            raise ChangelogMissingError(missing)

    async def _restore(self, partitions: frozenset[TP]) -> None:
        for table in self.tables.values():
            owned = {tp.partition for tp in partitions if tp.topic == table.changelog_topic_name}
            if isinstance(table, CheckpointTable):
                table.open_partitions(owned)
            else:
                table.data._clear()
        if not partitions:
            return
        consumer = self.app.consumer
        begun = monotonic()
        positions = {ensure_TP(k): v for k, v in
                     (await consumer.earliest_offsets(*partitions)).items()}  # fmt: skip
        await consumer.seek_wait(positions)
        count, positions = await self._read_up(positions)
        ours = [
            (table, tp.partition, tp)
            for table in self.tables.values() if isinstance(table, CheckpointTable)
            for tp in partitions if tp.topic == table.changelog_topic_name
        ]  # fmt: skip
        await self._whole(table.begin_reign(number) for table, number, _ in ours)
        # What a former owner wrote meanwhile lies before our reign, and counts.
        more, positions = await self._read_up(positions)
        await self._whole(
            table.uncover(number, next_offset=positions[tp]) for table, number, tp in ours
        )
        self.restored_records, self.restored_s = count + more, monotonic() - begun
        logger.info(
            "Restored %s changelog records of %s partitions in %.2f s",
            count,
            len(partitions),
            self.restored_s,
        )

    async def _whole(self, writes: Iterable[Awaitable[None]]) -> None:
        """Finish writes even if the take-over is cancelled: the next owner must not meet them."""
        self._writing = asyncio.gather(*writes)
        await asyncio.shield(self._writing)

    async def _read_up(self, positions: Mapping[TP, int]) -> tuple[int, dict[TP, int]]:
        """Apply the changelogs from these positions to their ends; return how many records."""
        consumer, count, read_at = self.app.consumer, 0, monotonic()
        at = dict(positions)
        ends = {ensure_TP(k): v for k, v in (await consumer.highwaters(*at)).items()}
        missing = frozenset(tp for tp in at if at[tp] < ends[tp])
        while missing:
            records, read = await consumer.read_changelogs(missing)
            for tp, found in records.items():
                count += len(found)
                await self._apply(ensure_TP(tp), found)
            at.update({ensure_TP(tp): position for tp, position in read.items()})
            missing = frozenset(tp for tp in missing if at[tp] < ends[tp])
            if records:
                read_at = monotonic()
            elif missing and monotonic() - read_at > STALLED_S:
                raise RestoreStalledError([f"{t}/{p}" for t, p in missing], STALLED_S)
        return count, at

    async def _apply(self, tp: TP, records: list[Any]) -> None:
        table = self.tables._changelogs[tp.topic]
        if isinstance(table, CheckpointTable):
            table.restore(tp.partition, records)
            return
        consumer, decode = self.app.consumer, table.changelog_topic.decode
        table.apply_changelog_batch(
            [await decode(consumer._to_message(tp, record)) for record in records]
        )


class BatchTableManager(TableManager):
    """The table manager with this recovery."""

    @property
    def recovery(self) -> BatchRecovery:
        """Return the service that takes partitions over."""
        if self._recovery is None:
            self._recovery = BatchRecovery(self.app, self, beacon=self.beacon, loop=self.loop)
        return cast("BatchRecovery", self._recovery)
