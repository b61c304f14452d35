"""Opens a partition: its pages from the tables, then what the topics hold beyond them."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import msgspec
from aiokafka import AIOKafkaProducer

from policy.acceptance import PARK_MS
from policy.catalog import Catalog
from policy.pages import PageKey
from policy.recover import PageError, finish, fold_decisions, load, needed
from policy.registry import make_policy
from policy.requests import Incoming
from policy.settle import APPLIED
from policy.state import Limits, State
from streams import topics
from streams.catalog_log import CatalogView, read_view
from streams.checkpoints import FORMAT, POSITION_KEY, Kept, read_position, whole_pages
from streams.failpoints import pass_point
from streams.faust_batches import CheckpointTable
from streams.folding import batch_of, folded_decisions
from streams.following import Follower
from streams.intake import Intake
from streams.log import LogError, LogReader
from streams.metrics import Metrics
from streams.partition import Partition
from streams.publisher import Outbox
from streams.records import BadRecordError, Decision, decode
from streams.refusing import DeadLetters, known_dead, mark_of
from streams.settling import settle_records
from streams.topic_facts import LOGS, check_ids

logger = logging.getLogger(__name__)

FOLD_CHUNK = 4_096


@dataclass(frozen=True, slots=True, kw_only=True)
class Opener:
    """What opening a partition needs; one for each assignment.

    ``topic_ids`` are those of the logs now; without them topics that were created anew go
    unnoticed. ``late_values`` is what the tables could not restore in order.
    """

    reader: LogReader
    follower: Follower
    make_intake: Callable[[Catalog], Intake]
    tables: Mapping[str, CheckpointTable]
    partitions: int
    producer: AIOKafkaProducer
    limits: Limits
    metrics: Metrics
    features: Callable[[], str]
    topic_ids: Sequence[bytes] = ()
    late_values: Callable[[int], dict[bytes, bytes]] = field(default=lambda _: {})

    async def open(self, number: int, owned: AIOKafkaProducer | None = None) -> Partition:
        """Return the partition with the state that its logs imply, ready for new records.

        ``owned`` has shut out all former owners, see ``streams.fencing``: it writes what only the
        owner may write. Without it nobody else must be there.
        """
        owned = owned or self.producer
        kept, state = self._load(number, *await self._checkpoint(number))
        decisions = Outbox(owned, topics.DECISIONS, number)
        letters = DeadLetters(
            partition=number,
            decisions=decisions,
            outbox=Outbox(owned, topics.DEAD_LETTERS, number),
            metrics=self.metrics,
            known=await known_dead(self.reader, number),
        )
        pass_point("worker.before_fold")
        await self._fold(state, letters)
        pass_point("worker.after_fold")
        finish(state)
        await letters.flush()
        logger.info("partition %s: open at %s", number, state.gate.position)
        return Partition(
            number=number,
            partitions=self.partitions,
            state=state,
            follower=self.follower,
            make_intake=lambda: self.make_intake(state.catalog),
            tables={name: table.reigning(number) for name, table in self.tables.items()},
            decisions=decisions,
            dead_letters=letters,
            statistics=Outbox(self.producer, topics.STATISTICS, 0),
            metrics=self.metrics,
            features=self.features(),
            committed_outcomes=kept.outcomes,
            lock=asyncio.Lock(),
            # No decision to come will say an earlier time, whoever makes it.
            read_ms=state.clock_ms,
            topic_ids=list(self.topic_ids),
            learned=kept.learned,
        )

    async def _checkpoint(self, number: int) -> tuple[Kept, dict[PageKey, bytes]]:
        """Return what is kept of the partition: from where to fold, and over which pages.

        Raises
        ------
        TopicRecreatedError
            If the pages follow from other topics than those that there are now.
        """
        nothing = Kept(0, 0, 0, FORMAT)
        values: dict[bytes, bytes] = {}
        for table in self.tables.values():
            values.update(table.values(number))
        packed = values.get(POSITION_KEY)
        kept = nothing if packed is None else msgspec.msgpack.decode(packed, type=Kept)
        if packed is not None and self.topic_ids:
            check_ids(kept.topics, self.topic_ids)
        if kept.format != FORMAT:
            logger.warning("partition %s: pages of format %s, folding", number, kept.format)
            return nothing, {}
        late = self.late_values(number)
        if not late:
            return kept, whole_pages(values, kept)
        # Exact is what follows from the whole log. A late page is exact in its money too, but
        # may have learned in another order than the log says.
        begins = [(await self.reader.bounds(topic, number))[0] for topic in LOGS]
        logger.warning("partition %s: %s values were written too late", number, len(late))
        if not any(begins):
            # What was learned must not be written where the last writing may be relied on.
            return Kept(0, 0, 0, FORMAT, kept.topics, kept.learned), {}
        positions = [kept.position, *(read_position(key, value) for key, value in late.items())]
        decisions, outcomes, clock_ms = map(min, zip(*positions, strict=True))
        # Outcomes that were parked when a late page was written had no effect yet.
        parked = await self.reader.offset_at(topics.OUTCOMES, number, clock_ms - PARK_MS)
        outcomes = min(outcomes, parked)
        whole = whole_pages({**late, **values}, kept)
        return Kept(decisions, outcomes, clock_ms, FORMAT, kept.topics, kept.learned), whole

    def _load(self, number: int, kept: Kept, pages: Mapping[PageKey, bytes]) -> tuple[Kept, State]:
        """Return the state of these pages, or an empty one to fold everything into."""
        catalog = self.follower.catalog
        state = State(
            dimensions=catalog.settings.dimensions,
            make_policy=make_policy,
            catalog=catalog,
            limits=self.limits,
        )
        try:
            load(state, pages, position=kept.position)
        except PageError as exc:
            logger.warning("partition %s: %s: folding", number, exc)
            return self._load(number, Kept(0, 0, 0, FORMAT, kept.topics, kept.learned), {})
        return kept, state

    async def _fold(self, state: State, letters: DeadLetters) -> None:
        """Fold what the logs hold beyond the pages; see ``policy.recover``.

        Writes the dead letters that the former owner did not come to write.
        """
        number = letters.partition
        _, end = await self.reader.bounds(topics.DECISIONS, number)
        start = state.gate.position.decisions
        if start > end:
            raise LogError(
                f"{topics.DECISIONS}/{number} ends at {end}, but the tables know {start}"
            )
        catalogs = None
        while start < end:
            until = min(start + FOLD_CHUNK, end)
            decisions = await self._decisions(number, start, until)
            # A batch is folded as a whole: one that is cut off waits for the next part.
            if until < end and decisions:
                last = batch_of(decisions[-1])
                whole = [d for d in decisions if batch_of(d) != last]
                decisions = whole or await self._decisions(number, start, end)
                until = decisions[-1][0] + 1 if whole else end
            older = [d for _, d in decisions if d.offsets.catalog < self.follower.catalog.offset]
            if older and catalogs is None:
                catalogs = await read_view(self.reader)
                seen = decisions[0][1].offsets
                state.set_catalog(self._catalog_at(catalogs, seen.catalog))
            requests = await self._requests(state.catalog, number, [d for _, d in decisions])
            last_seen = max((d.offsets.outcomes for _, d in decisions), default=0)
            outcomes = await self._outcomes(state, number, last_seen)
            for _, batch in groupby(decisions, key=batch_of):
                await self._fold_batch(state, letters, list(batch), requests, outcomes, catalogs)
            # What could not be read had no effect, but has its place.
            state.gate.advance("decisions", until)
            start = until
        until = needed(state).outcomes
        outcomes = await self._outcomes(state, number, until)
        await self._fold_outcomes(state, letters, outcomes, until)

    def _catalog_at(self, catalogs: CatalogView, offset: int) -> Catalog:
        """Return the catalog of that time, under which windows began, with the present policy."""
        then, newest = catalogs.at(offset), self.follower.catalog
        return replace(
            then,
            # Of a budget that was declared again long after, compaction leaves the later entry.
            budgets={**newest.budgets, **then.budgets},
            settings=newest.settings,
            encoder=newest.encoder,
        )

    async def _fold_batch(
        self, state: State, letters: DeadLetters, batch: Sequence[tuple[int, Decision]],
        requests: Mapping[int, Incoming], outcomes: deque[Any], catalogs: CatalogView | None,
    ) -> None:  # fmt: skip
        seen = batch[0][1].offsets
        await self._fold_outcomes(state, letters, outcomes, seen.outcomes)
        if catalogs is not None and seen.catalog != state.catalog.offset:
            state.set_catalog(self._catalog_at(catalogs, seen.catalog))
        for arrival, verdict in fold_decisions(state, folded_decisions(batch, requests)):
            if verdict.effect == "refused":
                await letters.refuse_parked(arrival.offset, verdict, at_ms=state.clock_ms)
        letters.forget_released(state)

    async def _fold_outcomes(
        self, state: State, letters: DeadLetters, outcomes: deque[Any], end: int
    ) -> None:
        """Settle the outcomes below ``end``; they leave the queue."""
        records = []
        while outcomes and outcomes[0].offset < end:
            records.append(outcomes.popleft())
        intake = self.make_intake(state.catalog)
        verdicts = settle_records(state, intake, records, self.partitions)
        for record, verdict in zip(records, verdicts, strict=True):
            if verdict is APPLIED:
                continue
            mark = mark_of(record.value)
            if verdict.effect == "parked":
                letters.parked[record.offset] = mark
            elif verdict.effect == "refused":
                await letters.refuse(
                    topics.OUTCOMES, record.offset, mark, verdict, at_ms=state.clock_ms
                )

    async def _outcomes(self, state: State, number: int, end: int) -> deque[Any]:
        """Return the outcomes that the state does not contain, up to ``end``."""
        start = state.gate.position.outcomes
        found: deque[Any] = deque()
        async for records in self.reader.read(topics.OUTCOMES, number, start, end):
            found.extend(records)
        return found

    async def _decisions(self, number: int, start: int, end: int) -> list[tuple[int, Decision]]:
        decisions = []
        async for records in self.reader.read(topics.DECISIONS, number, start, end):
            for record in records:
                try:
                    decisions.append((record.offset, decode(Decision, record.value)))
                except BadRecordError as exc:
                    logger.warning("decisions/%s/%s is not one: %s", number, record.offset, exc)
        return decisions

    async def _requests(
        self, catalog: Catalog, number: int, decisions: Sequence[Decision]
    ) -> dict[int, Incoming]:
        """Return the requests of these decisions by offset: only they hold the features."""
        wanted = {decision.offsets.request for decision in decisions}
        found: dict[int, Incoming] = {}
        if not wanted:
            return found
        intake = self.make_intake(catalog)
        async for records in self.reader.read(
            topics.REQUESTS, number, min(wanted), max(wanted) + 1
        ):
            found |= intake.accepted([record for record in records if record.offset in wanted])
        return found
