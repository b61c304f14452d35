"""One partition from the begin of its log: each round is decided anew on the state before it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from policy.catalog import Catalog
from policy.decide import Decided
from policy.digest import state_digest
from policy.recover import RoundSeen, decide_again, fold_decisions
from policy.registry import make_policy
from policy.requests import Incoming
from policy.settle import overdue
from policy.state import Limits, State
from streams import topics
from streams.intake import Intake
from streams.log import LogReader
from streams.opening import folded_decisions
from streams.outgoing import decision_records
from streams.partition import settle_records
from streams.records import Waiting
from streams.replay_log.compare import Difference, differs
from streams.replay_log.histories import CatalogView, Histories, StatisticsView
from streams.replay_log.places import Scattered, Sequential
from streams.replay_log.rounds import Placed, Round, Segment, read_segments

NO_ROUND = "the worker did not say in which round it decided"


class StoppedError(Exception):
    """A partition cannot be replayed any further; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What all partitions are replayed from."""

    kafka: str
    reader: LogReader
    histories: Histories
    partitions: int
    limits: Limits
    make_intake: Callable[[Catalog], Intake]
    features: Callable[[Catalog], str]


@dataclass(slots=True, kw_only=True)
class Tally:
    """What became of the decisions from the first that was to be compared."""

    compared: int = 0
    equal: int = 0
    differences: list[Difference] = field(default_factory=list)
    overlapping: int = 0
    unknown: dict[str, int] = field(default_factory=dict)

    def leave_out(self, count: int, reason: str) -> None:
        """Count decisions that cannot be made anew."""
        self.unknown[reason] = self.unknown.get(reason, 0) + count


class Replayer:
    """The state of a partition as its log goes on.

    Decisions below ``compare_from`` are not compared, and those below ``make_from`` are not made
    anew either but folded, which gives the same state.
    """

    def __init__(
        self, source: Source, partition: int, *, make_from: int = 0, compare_from: int = 0
    ) -> None:
        self._source = source
        self._partition = partition
        self._make_from = make_from
        self._compare_from = compare_from
        self._catalogs = CatalogView(source.histories.catalog)
        self._statistics = StatisticsView(
            source.reader, source.histories.statistics_kept, partition
        )
        self._outcomes = Sequential(source.reader, topics.OUTCOMES, partition, start=0)
        self._requests = Scattered(source.reader, topics.REQUESTS, partition)
        self._state: State | None = None
        self._branches: dict[int, Replayer] = {}
        self.tally = Tally()

    async def run(self, end: int) -> None:
        """Replay the rounds that begin below ``end``."""
        judged: set[int] = set()
        async with self._segments(end) as segments:
            async for segment in segments:
                await self._take(segment, judged)

    @asynccontextmanager
    async def _segments(self, end: int) -> AsyncIterator[AsyncIterator[Segment]]:
        reader = LogReader(self._source.kafka)
        await reader.start()
        try:
            yield read_segments(reader, self._partition, end)
        finally:
            await reader.stop()

    async def _take(self, segment: Segment, judged: set[int]) -> None:
        round_ = segment.round
        first = segment.items[0].offset
        if round_.in_place and first >= self._make_from:
            await self._make_or_fold(segment)
            return
        if not round_.in_place and first >= self._compare_from and id(round_) not in judged:
            judged.add(id(round_))
            await self._judge_elsewhere(round_)
        await self._fold(segment.items)

    async def _make_or_fold(self, segment: Segment) -> None:
        items = segment.items
        wanted = [item for item in items if item.offset >= self._compare_from]
        lost = self._lost(segment.round)
        if lost:
            self.tally.leave_out(len(wanted), lost)
            await self._fold(items)
            return
        self._count(wanted, await self.make(segment.round))

    async def _judge_elsewhere(self, round_: Round) -> None:
        """Make a round anew whose writer had not seen all that lies before it.

        Its state was that of the log below the offset where it meant to write, and of what it had
        written itself since.
        """
        if round_.first < 0:
            unread = round_.items[0].decision is None
            if unread:
                self._count(round_.items, {})
            else:
                self.tally.leave_out(1, NO_ROUND)
            return
        self.tally.overlapping += len(round_.items)
        lost = self._lost(round_)
        if lost:
            self.tally.leave_out(len(round_.items), lost)
            return
        branch = self._branches.pop(round_.first, None)
        if branch is None:
            curve = round_.head.offsets.curve
            make_from = curve if curve >= 0 else round_.first
            branch = Replayer(
                self._source, self._partition, make_from=make_from, compare_from=1 << 62
            )
            await branch.run_below(round_.first)
        self._count(round_.items, await branch.make(round_))
        self._branches[round_.first + len(round_.items)] = branch

    async def run_below(self, end: int) -> None:
        """Bring the state to what a worker had that opened the partition at ``end``."""
        async with self._segments(end) as segments:
            async for segment in segments:
                items = [item for item in segment.items if item.offset < end]
                if len(items) < len(segment.items):
                    await self._fold(items)
                else:
                    await self._take(segment, set())

    def _lost(self, round_: Round) -> str:
        seen = round_.head.offsets
        histories = self._source.histories
        return histories.lost_at(
            catalog=seen.catalog, statistics=seen.statistics, partition=self._partition
        )

    def _count(self, items: Sequence[Placed], made: dict[int, tuple[bytes, object]]) -> None:
        """Compare records with what was made anew, by the offset of their request."""
        for item in items:
            self.tally.compared += 1
            again: tuple[bytes | None, object] = (None, ())
            if item.decision is not None:
                again = made.get(item.decision.offsets.request, again)
            found = differs(self._partition, item, *again)
            if found is None:
                self.tally.equal += 1
            else:
                self.tally.differences.append(found)

    # -- the state

    async def make(self, round_: Round) -> dict[int, tuple[bytes, object]]:
        """Decide a round anew; return each record and its headers by the request's offset."""
        head = round_.head
        state = await self._before(round_)
        waiting = head.waiting or Waiting(before=0, fresh=0, tried=[])
        records = await self._requests.at([*round_.requests, *waiting.tried])
        intake = self._source.make_intake(state.catalog)
        ranked = [_incoming(intake, records[offset]) for offset in sorted(records)]
        lives = [item.decision for item in round_.items if item.decision and item.decision.arm]
        if lives:
            ttl_ms = lives[0].expires_ms - lives[0].decided_ms
            state.limits = replace(state.limits, reservation_ttl_ms=ttl_ms)
        decided = decide_again(
            state,
            ranked,
            RoundSeen(
                now_ms=head.decided_ms,
                curve_at=head.offsets.curve,
                waiting_before=waiting.before,
                fresh_from=waiting.fresh,
            ),
        )
        overdue(state)
        self._check_whole(round_, decided)
        values = decision_records(
            decided,
            policy=state.catalog.settings.policy,
            features=self._source.features(state.catalog),
            catalog=state.catalog.offset,
            statistics=state.statistics,
            seed=state.catalog.settings.seed,
            ttl_ms=state.limits.reservation_ttl_ms,
        )
        return {
            choice.request.offset: (value, records[choice.request.offset].headers or ())
            for choice, value in zip(decided.choices, values, strict=True)
        }

    def _check_whole(self, round_: Round, decided: Decided) -> None:
        made = {choice.request.offset for choice in decided.choices}
        if made == round_.requests:
            return
        missing, more = sorted(round_.requests - made), sorted(made - round_.requests)
        raise DivergedError(
            Difference(
                partition=self._partition,
                offset=round_.items[0].offset,
                request_id=round_.head.request_id,
                fields={},
                reason=f"its round, made anew, decides other requests: not those at {missing[:5]},"
                f" but those at {more[:5]}",
            )
        )

    async def _fold(self, items: Sequence[Placed]) -> None:
        """Let decisions take effect as they were written."""
        batch = [(item.offset, item.decision) for item in items if item.decision is not None]
        if batch:
            head = batch[0][1]
            state = await self._before_decision(head.offsets.outcomes, head.offsets.catalog,
                                                head.offsets.statistics)  # fmt: skip
            records = await self._requests.at([d.offsets.request for _, d in batch])
            intake = self._source.make_intake(state.catalog)
            requests = {offset: _incoming(intake, record) for offset, record in records.items()}
            fold_decisions(state, folded_decisions(batch, requests))
        if self._state is not None:
            self._state.gate.advance("decisions", items[-1].offset + 1)

    async def _before(self, round_: Round) -> State:
        seen = round_.head.offsets
        return await self._before_decision(seen.outcomes, seen.catalog, seen.statistics)

    async def _before_decision(self, outcomes: int, catalog: int, statistics: int) -> State:
        """Return the state with what a round had seen besides the decisions before it."""
        state = self._state
        if state is None:
            state = self._state = self._new_state(self._catalogs.at(catalog))
        await self._settle(state, outcomes)
        if catalog > state.catalog.offset:
            newer = self._catalogs.at(catalog)
            if newer.settings != state.catalog.settings:
                raise StoppedError(
                    f"the catalog's policy changed at offset {catalog} or before: what the new one "
                    "had learned when it began depends on checkpoints"
                )
            state.set_catalog(newer)
        if statistics > state.statistics:
            await self._statistics.merge(state, statistics)
        return state

    def _new_state(self, catalog: Catalog) -> State:
        return State(
            dimensions=catalog.settings.dimensions,
            make_policy=make_policy,
            catalog=catalog,
            limits=self._source.limits,
        )

    async def _settle(self, state: State, end: int) -> None:
        intake = self._source.make_intake(state.catalog)
        records = await self._outcomes.below(end)
        settle_records(state, intake, records, self._source.partitions)

    async def finish(self, outcomes_end: int | None = None) -> tuple[tuple[int, ...], str]:
        """Settle the outcomes after the last decision; return the position and the state's hash."""
        state = self._state
        if state is None:
            state = self._state = self._new_state(Catalog())
        if outcomes_end is not None:
            await self._settle(state, outcomes_end)
        return tuple(state.gate.position), state_digest(state)


class DivergedError(StoppedError):
    """A round decided other requests when made anew: the states are not alike any more."""

    def __init__(self, difference: Difference) -> None:
        super().__init__(difference.reason)
        self.difference = difference


def _incoming(intake: Intake, record: object) -> Incoming:
    return intake.request(
        record.key,  # type: ignore[attr-defined]
        record.value,  # type: ignore[attr-defined]
        offset=record.offset,  # type: ignore[attr-defined]
        at_ms=record.timestamp,  # type: ignore[attr-defined]
        known=True,
    )
