"""One partition at work: its records in, its decisions out, its state in the tables.

Every method that touches the state holds the partition's lock, so that what is written to the
tables lies between two batches; it is written when all decisions in it are acknowledged.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

from policy.decide import decide
from policy.pages import Position
from policy.requests import Incoming, Requests
from policy.settle import APPLIED, Verdict, overdue
from policy.state import State
from streams import topics
from streams.admission import admit
from streams.checkpoints import FORMAT, Kept, Table, write_pages, write_position
from streams.failpoints import pass_point
from streams.following import Follower, PolicyChangedError
from streams.intake import Intake
from streams.metrics import Metrics
from streams.outgoing import decision_records
from streams.publisher import Headers, Outbox
from streams.refusing import DeadLetters, mark_of
from streams.settling import settle_records
from streams.statistics_records import CLOCK, statistics_records

CHUNK = 2_048
"""Requests that are decided in one call."""
RESERVATIONS_EVERY = 5
"""Reservation pages are written at every so many checkpoints: they change most."""
FOLDED_MOST = 8_192
"""And at the next checkpoint after so many decisions: a new owner folds what they do not hold."""


@dataclass(slots=True, kw_only=True, eq=False)
class Partition:
    """A partition that this worker owns, opened by ``streams.opening``."""

    number: int
    partitions: int
    state: State
    follower: Follower
    make_intake: Callable[[], Intake]
    tables: Mapping[str, Table]
    decisions: Outbox
    dead_letters: DeadLetters
    statistics: Outbox
    metrics: Metrics
    features: str
    committed_outcomes: int
    lock: asyncio.Lock
    read_ms: int
    """The time up to which the requests were read."""
    committed_requests: int | None = None
    topic_ids: list[bytes] = field(default_factory=list)
    learned: tuple[int, int] = (0, 0)
    _requests_next: int | None = None
    # The first one holds them too: who is killed twice must not fold twice what was folded once.
    _checkpoints: int = RESERVATIONS_EVERY - 1
    _reserved_at: int = 0
    _kept: Kept | None = None
    _headers: dict[int, Headers] = field(default_factory=dict)
    _take_learned: bool = True
    _idle_at: tuple[int | None, Position] | None = None
    _checkpointing: asyncio.Lock = field(default_factory=asyncio.Lock)

    # -- records in

    async def on_requests(self, records: Sequence[Any]) -> None:
        """Decide the requests of a batch, in order; bad ones become dead letters."""
        for start in range(0, len(records), CHUNK):
            chunk = records[start : start + CHUNK]
            async with self.lock:
                self._refresh()
                await self._decide_records(chunk)
                self.read_ms = max(self.read_ms, chunk[-1].timestamp)
                await self._refuse_overdue()
                self._requests_next = chunk[-1].offset + 1

    async def on_outcomes(self, records: Sequence[Any]) -> None:
        """Settle and learn from the outcomes of a batch, in order."""
        async with self.lock:
            applied_from = self.state.gate.position.outcomes
            new = [record for record in records if record.offset >= applied_from]
            verdicts = settle_records(self.state, self.make_intake(), new, self.partitions)
            pass_point("worker.after_settle")
            self.metrics.count_outcomes(verdicts)
            for record, verdict in zip(new, verdicts, strict=True):
                if verdict is not APPLIED:
                    await self._note_outcome(record, verdict)
            await self._refuse_overdue()
            if self.state.waiting:
                await self._decide([], now_ms=self.state.clock_ms)

    async def _note_outcome(self, record: Any, verdict: Verdict) -> None:
        if verdict.effect == "refused":
            await self._refuse(topics.OUTCOMES, record.offset, record.value, verdict)
        elif verdict.effect == "parked":
            self.dead_letters.parked[record.offset] = mark_of(record.value)

    async def _refuse_overdue(self) -> None:
        verdict = Verdict("refused", "unknown_request", "no decision came for it")
        for arrival in overdue(self.state, read_ms=self.read_ms):
            await self._refuse_parked(arrival.offset, verdict)

    async def _decide_records(self, records: Sequence[Any]) -> None:
        intake, number = self.make_intake(), self.number
        requests, refused = admit(intake, records, number=number, partitions=self.partitions)
        for offset, verdict in refused.items():
            await self._refuse(topics.REQUESTS, offset, _value_at(records, offset), verdict)
        self._headers.update((r.offset, r.headers) for r in records if r.headers)
        now_ms = max((record.timestamp for record in records), default=0)
        for request in await self._decide(requests, now_ms=now_ms):
            if request.offset in refused:
                continue  # It has its dead letter.
            verdict = Verdict("refused", "conflict", "this request id was used with other content")
            value = _value_at(records, request.offset)
            await self._refuse(topics.REQUESTS, request.offset, value, verdict)

    async def _decide(
        self, requests: Requests | Sequence[Incoming], *, now_ms: int
    ) -> Sequence[Incoming]:
        state = self.state
        pass_point("worker.before_decide")
        decided = decide(state, requests, now_ms=now_ms)
        pass_point("worker.after_decide")
        self.metrics.count(self.number, decided, state)
        for arrival, verdict in decided.released:
            if verdict.effect == "refused":
                await self._refuse_parked(arrival.offset, verdict)
        if decided.released:
            self.dead_letters.forget_released(state)
        if len(decided.choices):
            settings = state.catalog.settings
            values = decision_records(
                decided,
                policy=settings.policy,
                features=self.features,
                catalog=state.catalog.offset,
                statistics=state.statistics,
                seed=settings.seed,
                ttl_ms=state.limits.reservation_ttl_ms,
            )
            batch, rows = decided.choices.requests, decided.choices.rows.tolist()
            keys = {name: name.partition("/")[0].encode() for name in set(batch.budgets)}
            passed = None
            if self._headers:
                passed = [self._headers.pop(batch.offsets[row], ()) for row in rows]
            await self.decisions.send(
                None,
                values,
                keys=[keys[batch.budgets[row]] for row in rows],
                headers=passed,
                first_offset=decided.first_offset,
            )
            pass_point("worker.after_send")
        for request in (*decided.duplicates, *decided.conflicts):
            self._headers.pop(request.offset, None)
        return decided.conflicts

    async def _refuse(self, topic: str, offset: int, value: bytes | None, verdict: Verdict) -> None:
        at_ms = self.state.clock_ms
        await self.dead_letters.refuse(topic, offset, mark_of(value), verdict, at_ms=at_ms)

    async def _refuse_parked(self, offset: int, verdict: Verdict) -> None:
        await self.dead_letters.refuse_parked(offset, verdict, at_ms=self.state.clock_ms)

    async def _refuse_entries(self) -> None:
        """Write dead letters for the catalog's; the catalog has the one partition 0."""
        for offset, (record, error) in list(self.follower.refused.items()):
            verdict = Verdict("refused", error.reason, error.detail)
            await self._refuse(topics.CATALOG, offset, record.value, verdict)
            self.dead_letters.known.add((topics.CATALOG, offset))

    def _refresh(self) -> None:
        """Take the newest catalog, and once a checkpoint what other partitions have learned.

        They tell it one after the other, and all arms are to be fitted anew after each.
        """
        state, follower = self.state, self.follower
        if follower.catalog.offset != state.catalog.offset:
            if follower.catalog.settings != state.catalog.settings:
                raise PolicyChangedError(str(follower.catalog.settings))
            state.set_catalog(follower.catalog)
        if self._take_learned and follower.statistics_offset > state.statistics:
            for (source, arm), learned in follower.learned.items():
                mine = source == self.number
                same = learned.record.policy == state.catalog.settings.policy
                if learned.offset >= state.statistics and not mine and same:
                    # Another version of the policy may have written it.
                    with suppress(ValueError):
                        state.policy.merge(arm, source, learned.state)
            state.statistics = follower.statistics_offset
            self._take_learned = False

    async def tick(self) -> None:
        """Let time go on for waiting requests where no record does; the broker says what time.

        Called once a second; does nothing while records come.
        """
        at = (self._requests_next, self.state.gate.position)
        idle, self._idle_at = at == self._idle_at, at
        if idle and self.state.waiting:
            async with self.lock:
                await self._decide([], now_ms=await self.statistics.broker_time(CLOCK))

    # -- state out

    def commit_position(self, topic: str) -> int | None:
        """Return how far a topic is done with for good: durable in decisions and tables."""
        if topic == topics.REQUESTS:
            return self.committed_requests
        return self.committed_outcomes

    async def checkpoint(self, *, everything: bool = False) -> None:
        """Write the dirty pages, then the position from which a fold must begin.

        What is written contains only decisions and dead letters that were acknowledged; while
        that is waited for, deciding goes on. One at a time: an older page written last, below a
        newer position, would lose what is between.
        """
        async with self._checkpointing:
            await self._checkpoint(everything=everything)

    async def _checkpoint(self, *, everything: bool) -> None:
        async with self.lock:
            if self.number == 0:
                await self._refuse_entries()
            self._checkpoints += 1
            state = self.state
            decided = state.gate.position.decisions
            late = everything or self._checkpoints % RESERVATIONS_EVERY == 0
            late = late or decided - self._reserved_at >= FOLDED_MOST
            if late:
                self._reserved_at = decided
            pages = [p for p in state.gate.dirty if late or p[0] != "reservation"]
            dumped = {page: state.dump_page(page) for page in pages}
            learned = {arm: state.policy.dump(arm) for arm in state.arms_of(pages)}
            dirty = {page: state.gate.dirty.pop(page) for page in pages}
            forgotten = state.reservations.forget()
            low = state.low()
            position = state.gate.position
            waiting = [r.offset for queue in state.deferred.values() for r in queue]
            done = None if self._requests_next is None else min([self._requests_next, *waiting])
        try:
            pass_point("worker.before_flush")
            await self.decisions.flush()
            pass_point("worker.after_append")
            await self.dead_letters.flush()
            self.learned = await write_pages(
                self.tables, self.number, dumped, forgotten, self.learned
            )
        except BaseException:
            # Some may not be durable: no later checkpoint may rely on them.
            state.gate.dirty.update(dirty)
            raise
        kept = Kept(*low, FORMAT, self.topic_ids, self.learned)
        if kept != self._kept:
            pass_point("worker.after_pages")
            await write_position(self.tables, self.number, kept)
            pass_point("worker.after_position")
            self._kept = kept
        self.committed_outcomes = max(self.committed_outcomes, low.outcomes)
        if done is not None:
            self.committed_requests = done
        self._take_learned = True
        await self._publish(learned, position)
        self.metrics.checkpoint_pages.inc(len(dumped))

    async def _publish(self, learned: Mapping[str, bytes], position: Position) -> None:
        """Let the other partitions know what this one has learned."""
        if not learned:
            return
        policy = self.state.catalog.settings.policy
        keys, values = statistics_records(self.number, policy, position, learned)
        await self.statistics.send(None, values, keys=keys)
        await self.statistics.flush()


def _value_at(records: Sequence[Any], offset: int) -> bytes | None:
    """Return the value of the record at an offset; the records are in the order of theirs."""
    value: bytes | None = records[bisect_left(records, offset, key=attrgetter("offset"))].value
    return value
