"""One partition from the begin of its log: each round is decided anew on the state before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from streams.log import BeyondEndError, LogReader
from streams.records import BadRecordError
from streams.replay_log.compare import Difference, differs
from streams.replay_log.past import DivergedError, Made, Past, Source
from streams.replay_log.rounds import Placed, Round, read_rounds

NO_ROUND = "the worker did not say in which round it decided"


@dataclass(slots=True, kw_only=True)
class Tally:
    """What became of the decisions from the first that was to be compared."""

    compared: int = 0
    equal: int = 0
    differences: list[Difference] = field(default_factory=list)
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
        self.tally = Tally()

    async def run(self, end: int) -> None:
        """Replay the rounds that begin below ``end``."""
        reader = LogReader(self._source.kafka)
        await reader.start()
        try:
            async for round_ in read_rounds(reader, self._partition, end):
                try:
                    await self._take(round_)
                except (BeyondEndError, BadRecordError) as exc:
                    reason = f"its round names what cannot be: {exc}"
                    raise DivergedError(self._difference(round_.items[0], reason)) from exc
        finally:
            await reader.stop()

    async def _take(self, round_: Round) -> None:
        wanted = [item for item in round_.items if item.offset >= self._compare_from]
        if not round_.in_place:
            self._judge_displaced(round_, wanted)
        elif wanted or round_.first >= self._make_from:
            lost = self._lost(round_)
            if not lost:
                self._count(wanted, await self.past.make(round_))
                return
            self.tally.leave_out(len(wanted), lost)
        await self.past.fold(round_.items)

    def _judge_displaced(self, round_: Round, wanted: Sequence[Placed]) -> None:
        """Judge decisions that do not lie where their round says; an owner's always do.

        Another writer would have been shut out (:mod:`streams.fencing`).
        """
        if round_.first < 0:
            unread = round_.items[0].decision is None
            if unread:
                self._count(wanted, {})
            else:
                self.tally.leave_out(len(wanted), NO_ROUND)
            return
        reason = f"its round does not lie whole at {round_.first}, where it says"
        self.tally.compared += len(wanted)
        self.tally.differences += [self._difference(item, reason) for item in wanted]

    def _difference(self, item: Placed, reason: str) -> Difference:
        name = "" if item.decision is None else item.decision.request_id
        return Difference(
            partition=self._partition, offset=item.offset, request_id=name, fields={},
            reason=reason,
        )  # fmt: skip

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
