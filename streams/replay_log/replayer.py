"""One partition from the begin of its log: each round is decided anew on the state before it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from streams.log import BeyondEndError, LogReader
from streams.records import BadRecordError
from streams.replay_log.compare import Difference, differs
from streams.replay_log.past import DivergedError, Made, Past, Source
from streams.replay_log.rounds import Placed, Round, Segment, read_segments

NO_ROUND = "the worker did not say in which round it decided"


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
    """Goes through a partition, and tallies what is alike.

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
        self.past = Past(source, partition)
        self._branches: dict[int, Replayer] = {}
        self.tally = Tally()

    async def run(self, end: int) -> None:
        """Replay the rounds that begin below ``end``."""
        judged: set[int] = set()
        async with self._segments(end) as segments:
            async for segment in segments:
                try:
                    await self._take(segment, judged)
                except (BeyondEndError, BadRecordError) as exc:
                    item = segment.items[0]
                    name = "" if item.decision is None else item.decision.request_id
                    raise DivergedError(
                        Difference(
                            partition=self._partition,
                            offset=item.offset,
                            request_id=name,
                            fields={},
                            reason=f"its round names what cannot be: {exc}",
                        )
                    ) from exc

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
        await self.past.fold(segment.items)

    async def _make_or_fold(self, segment: Segment) -> None:
        items = segment.items
        wanted = [item for item in items if item.offset >= self._compare_from]
        lost = self._lost(segment.round)
        if lost:
            self.tally.leave_out(len(wanted), lost)
            await self.past.fold(items)
            return
        self._count(wanted, await self.past.make(segment.round))

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
        self._count(round_.items, await branch.past.make(round_))
        self._branches[round_.first + len(round_.items)] = branch

    async def run_below(self, end: int) -> None:
        """Bring the state to what a worker had that opened the partition at ``end``."""
        async with self._segments(end) as segments:
            async for segment in segments:
                items = [item for item in segment.items if item.offset < end]
                if len(items) < len(segment.items):
                    await self.past.fold(items)
                else:
                    await self._take(segment, set())

    def _lost(self, round_: Round) -> str:
        seen = round_.head.offsets
        histories = self._source.histories
        return histories.lost_at(
            catalog=seen.catalog, statistics=seen.statistics, partition=self._partition
        )

    def _count(self, items: Sequence[Placed], made: Made) -> None:
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
