"""Gathers all records of one request: from the ledger's places where it knows them, else by search.

The topics are the truth, the ledger is the index. Without a ledger, and for requests that were
never decided, partitions are read through; ``root`` leaves the one that its key belongs to.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from msgspec import Struct

from policy.acceptance import PARK_MS
from streams import topics
from streams.catalog_log import read_catalog
from streams.explain.ledger_places import Places, find_places
from streams.explain.trace import Placed, Trace
from streams.explain.trace_reader import TraceReader, is_about, partition_of, placed
from streams.records import DeadLetter, Decision, Outcome, Request

R = TypeVar("R", bound=Struct)

_NEIGHBOURS = 200
"""Decisions before this one among which one of a later request is looked for."""


class SeveralRootsError(Exception):
    """The id was used under several budget roots."""

    def __init__(self, request_id: str, roots: Iterable[str]) -> None:
        self.roots = sorted(roots)
        super().__init__(
            f"request id {request_id!r} was used under the budget roots {', '.join(self.roots)}: "
            "name one with --budget"
        )


async def trace(
    kafka: str, request_id: str, *, root: str | None = None, database_url: str | None = None
) -> Trace:
    """Return all that topics and ledger hold of a request.

    Raises
    ------
    SeveralRootsError
        If ``root`` is not given and the id was used under several.
    LogError
        If there are no topics.
    """
    places = await asyncio.to_thread(find_places, database_url, request_id, root)
    reader = TraceReader(kafka)
    await reader.start()
    try:
        return await _Search(reader, request_id, root, places).run()
    finally:
        await reader.stop()


class _Search:
    """One search; ``searched`` notes what was read through."""

    def __init__(
        self, reader: TraceReader, request_id: str, root: str | None, places: Places
    ) -> None:
        self.reader = reader
        self.request_id = request_id
        self.root = root
        self.places = places
        self.searched: list[str] = []

    async def run(self) -> Trace:
        """Return the trace."""
        numbers = await self.reader.partitions(topics.REQUESTS)
        decision = await self._decision(numbers)
        request = await self._request(decision, numbers)
        if (
            decision is None
            and request is not None
            and request.partition not in self._likely(numbers)
        ):
            if request.record is not None:
                self.root = _root(request.record.budget)
            for found in await self._scan(topics.DECISIONS, request.partition, Decision):
                if found.record is not None and self._is_wanted(found.record.budget):
                    decision = found
                    break
        row = self.places.row
        if decision is not None and decision.record is not None:
            self.root = _root(decision.record.budget)
        elif request is not None and request.record is not None:
            self.root = _root(request.record.budget)
        elif row is not None:
            self.root = _root(row["budget"])
        root = self.root
        trace = Trace(
            request_id=self.request_id,
            root=root,
            request=request,
            decision=decision,
            transfers=self.places.transfers,
            conflicts=self.places.conflicts,
            ledger_row=row,
            ledger_problem=self.places.problem,
            partition_of_key=None if root is None else partition_of(root, numbers),
            searched=self.searched,
        )
        at = request or decision
        if at is not None:
            trace = await self._aftermath(trace, at.partition, at.at_ms - PARK_MS)
        elif row is not None:
            trace = await self._aftermath(trace, row["partition"], row["decided_ms"] - PARK_MS)
        else:
            trace = await self._strays(trace, numbers)
        until = None
        if decision is not None and decision.record is not None:
            until = decision.record.offsets.catalog
        log = await read_catalog(self.reader, until=until)
        return replace(trace, catalog=log.catalog)

    async def _decision(self, numbers: Sequence[int]) -> Placed[Decision] | None:
        if len(self.places.rows) > 1:
            raise SeveralRootsError(
                self.request_id, {_root(row["budget"]) for row in self.places.rows}
            )
        row = self.places.row
        if row is not None:
            at = [row["decision_offset"]]
            for found in await self._pick(topics.DECISIONS, row["partition"], at, Decision):
                if found.record is not None:
                    return found
            return None
        by_root: dict[str, Placed[Decision]] = {}
        for number in self._likely(numbers):
            for found in await self._scan(topics.DECISIONS, number, Decision):
                if found.record is not None and self._is_wanted(found.record.budget):
                    # The decision at the lowest offset counts.
                    by_root.setdefault(_root(found.record.budget), found)
        if len(by_root) > 1:
            raise SeveralRootsError(self.request_id, by_root)
        return next(iter(by_root.values()), None)

    async def _request(
        self, decision: Placed[Decision] | None, numbers: Sequence[int]
    ) -> Placed[Request] | None:
        if decision is not None and decision.record is not None:
            at = [decision.record.offsets.request]
            found = await self._pick(topics.REQUESTS, decision.partition, at, Request)
            return next(iter(found), None)
        if self.places.row is not None:
            return None
        likely = self._likely(numbers)
        found = await self._requests_in(likely)
        # A producer whose partitioner is not Kafka's puts keys elsewhere: look there, too.
        found = found or await self._requests_in([n for n in numbers if n not in likely])
        roots = {_root(p.record.budget) for p in found if p.record is not None}
        if len(roots) > 1:
            raise SeveralRootsError(self.request_id, roots)
        return next((p for p in found if p.record is not None), next(iter(found), None))

    async def _requests_in(self, numbers: Sequence[int]) -> list[Placed[Request]]:
        found = [p for n in numbers for p in await self._scan(topics.REQUESTS, n, Request)]
        return [p for p in found if p.record is None or self._is_wanted(p.record.budget)]

    async def _aftermath(self, trace: Trace, number: int, since_ms: int) -> Trace:
        """Return the trace with what came after the request: outcomes and dead letters."""
        start = await self.reader.offset_at(topics.DEAD_LETTERS, number, since_ms)
        letters = await self._letters(number, start)
        start = await self.reader.offset_at(topics.OUTCOMES, number, since_ms)
        known = self.places.outcome_offsets
        outcomes = await self._pick(topics.OUTCOMES, number, known, Outcome)
        start = max(start, self.places.next_outcome(number))
        outcomes += await self._scan(topics.OUTCOMES, number, Outcome, start=start)
        unreadable = [x.record.offset for x in letters if x.record and x.record.topic
                      == topics.OUTCOMES]  # fmt: skip
        outcomes += await self._pick(topics.OUTCOMES, number, unreadable, Outcome)
        by_offset = {outcome.offset: outcome for outcome in outcomes}
        overtaken = trace.decision is not None and await self._is_overtaken(trace.decision)
        return replace(
            trace,
            outcomes=[by_offset[offset] for offset in sorted(by_offset)],
            dead_letters=letters,
            overtaken=overtaken,
        )

    async def _strays(self, trace: Trace, numbers: Sequence[int]) -> Trace:
        """Return the trace with the outcomes of an id that nothing else is known of."""
        roots: set[str] = set()

        def is_stray(record: Any) -> bool:
            if not self._is_about(record):
                return False
            roots.add(_text(record.key))
            return True

        likely = self._likely(numbers)
        found: list[Placed[Outcome]] = []
        for number in [*likely, *(number for number in numbers if number not in likely)]:
            if not found or number in likely:
                found += await self._scan(topics.OUTCOMES, number, Outcome, wanted=is_stray)
        if not found:
            return trace
        if len(roots) > 1:
            raise SeveralRootsError(self.request_id, roots)
        self.root = roots.pop()
        first = min(found, key=lambda outcome: outcome.at_ms)
        home = partition_of(self.root, numbers)
        trace = replace(trace, root=self.root, partition_of_key=home)
        return await self._aftermath(trace, first.partition, first.at_ms)

    async def _letters(self, number: int, start: int) -> list[Placed[DeadLetter]]:
        """Return the dead letters whose records name this request."""
        _, end = await self.reader.bounds(topics.DEAD_LETTERS, number)
        letters: dict[tuple[str, int], Placed[DeadLetter]] = {}
        async for records in self.reader.read(topics.DEAD_LETTERS, number, start, end):
            for found in (placed(record, DeadLetter) for record in records):
                letter = found.record
                if letter is not None and letter.partition == number:
                    letters[letter.topic, letter.offset] = found
        mine = []
        for topic in (topics.REQUESTS, topics.OUTCOMES):
            offsets = [offset for of, offset in letters if of == topic]
            kind = Request if topic == topics.REQUESTS else Outcome
            # Another root's request may have the same id; what cannot be read may be this one.
            mine += [
                letters[topic, about.offset]
                for about in await self._pick(topic, number, offsets, kind)
                if not isinstance(about.record, Request) or self._is_wanted(about.record.budget)
            ]
        return sorted(mine, key=lambda letter: letter.offset)

    async def _is_overtaken(self, decision: Placed[Decision]) -> bool:
        assert decision.record is not None
        number = decision.partition
        first, _ = await self.reader.bounds(topics.DECISIONS, number)
        start = max(first, decision.offset - _NEIGHBOURS)
        async for records in self.reader.read(topics.DECISIONS, number, start, decision.offset):
            for before in (placed(record, Decision).record for record in records):
                if before and before.offsets.request > decision.record.offsets.request:
                    return True
        return False

    def _likely(self, numbers: Sequence[int]) -> list[int]:
        return list(numbers) if self.root is None else [partition_of(self.root, numbers)]

    def _is_about(self, record: Any) -> bool:
        # An outcome does not name its budget: its key is the root, and an id has one per root.
        others = record.topic == topics.OUTCOMES and self.root not in (None, _text(record.key))
        return not others and is_about(record.value, self.request_id)

    def _is_wanted(self, budget: str) -> bool:
        return self.root is None or _root(budget) == self.root

    async def _scan(
        self,
        topic: str,
        number: int,
        kind: type[R],
        *,
        start: int = 0,
        wanted: Callable[[Any], bool] | None = None,
    ) -> list[Placed[R]]:
        found, (first, end) = await self.reader.search(
            topic, number, kind, wanted or self._is_about, start=start
        )
        self.searched.append(f"{topic}/{number} from {first} to {end}")
        return found

    async def _pick(
        self, topic: str, number: int, at: Sequence[int], kind: type[R]
    ) -> list[Placed[R]]:
        return await self.reader.pick(topic, number, kind, self._is_about, at=at)


def _text(key: bytes | None) -> str:
    return (key or b"").decode(errors="replace")


def _root(budget: str) -> str:
    return budget.partition("/")[0]
