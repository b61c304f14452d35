"""The state of a partition as its log goes on: rounds are made anew, or folded as they were."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from policy.catalog import Catalog
from policy.decide import Decided
from policy.digest import state_digest
from policy.recover import RoundSeen, decide_again, fold_decisions
from policy.registry import make_policy
from policy.settle import overdue
from policy.state import Limits, State
from streams import topics
from streams.catalog_log import CatalogView
from streams.folding import folded_decisions
from streams.intake import Intake
from streams.log import LogReader
from streams.outgoing import decision_records
from streams.records import Waiting
from streams.replay_log.compare import Difference
from streams.replay_log.histories import Histories, StatisticsView
from streams.replay_log.places import Scattered, Sequential
from streams.replay_log.rounds import Placed, Round
from streams.settling import settle_records

Made = dict[int, tuple[bytes, object]]
"""The record and the headers of each decision of a round, by the offset of its request."""


class StoppedError(Exception):
    """A partition cannot be replayed any further; the message says why."""


class DivergedError(StoppedError):
    """A round decided other requests when made anew: the states are not alike any more."""

    def __init__(self, difference: Difference) -> None:
        super().__init__(difference.reason)
        self.difference = difference


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


class Past:
    """One partition's state; what it is given next must follow in the log."""

    def __init__(self, source: Source, partition: int) -> None:
        self._source = source
        self._partition = partition
        self._catalogs = CatalogView(source.histories.catalog)
        self._statistics = StatisticsView(
            source.reader, source.histories.statistics_kept, partition
        )
        self._outcomes = Sequential(source.reader, topics.OUTCOMES, partition, start=0)
        self._requests = Scattered(source.reader, topics.REQUESTS, partition)
        self._state: State | None = None

    async def make(self, round_: Round) -> Made:
        """Decide a round anew; return each record and its headers by the request's offset."""
        head = round_.head
        state = await self._before(round_)
        waiting = head.waiting or Waiting(before=0, fresh=0, tried=[])
        records = await self._requests.at([*round_.requests, *waiting.tried])
        intake = self._source.make_intake(state.catalog)
        ranked = [*intake.accepted([records[offset] for offset in sorted(records)]).values()]
        lives = [item.decision for item in round_.items if item.decision and item.decision.arm]
        if lives:
            ttl_ms = lives[0].expires_ms - lives[0].decided_ms
            state.limits = replace(state.limits, reservation_ttl_ms=ttl_ms)
        # Between it and the decisions before it an owner's marker may lie.
        state.gate.advance("decisions", round_.first)
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
        # Whatever comes next was decided later than this.
        overdue(state, read_ms=state.clock_ms)
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

    async def fold(self, items: Sequence[Placed]) -> None:
        """Let decisions take effect as they were written."""
        batch = [(item.offset, item.decision) for item in items if item.decision is not None]
        if batch:
            head = batch[0][1]
            state = await self._before_decision(head.offsets.outcomes, head.offsets.catalog,
                                                head.offsets.statistics)  # fmt: skip
            records = await self._requests.at([d.offsets.request for _, d in batch])
            requests = self._source.make_intake(state.catalog).accepted([*records.values()])
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

    async def finish(self, ends: tuple[int, int] | None = None) -> tuple[tuple[int, ...], str]:
        """Return the position and the state's hash.

        With the ``ends`` of decisions and outcomes, the outcomes after the last decision settle,
        and an owner's marker behind it counts.
        """
        state = self._state
        if state is None:
            state = self._state = self._new_state(Catalog())
        if ends is not None:
            state.gate.advance("decisions", ends[0])
            await self._settle(state, ends[1])
        return tuple(state.gate.position), state_digest(state)
