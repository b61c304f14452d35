"""Replays partitions and reports: how many decisions came out alike, and the hash of each state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from policy.catalog import Catalog
from policy.state import Limits
from streams import topics
from streams.intake import Intake
from streams.log import LogError, LogReader
from streams.records import BadRecordError, Decision, decode
from streams.replay_log.compare import Difference
from streams.replay_log.histories import Histories
from streams.replay_log.past import DivergedError, Source, StoppedError
from streams.replay_log.replayer import Replayer

_CURVE_REACH = 4_096
"""No decision reads a spend curve that was made so many decisions before its round began."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """Where to begin or end: an offset of the decisions, or a time."""

    offset: int | None = None
    at_ms: int | None = None


@dataclass(slots=True, kw_only=True)
class PartitionReport:
    """What a partition's replay came to; ``unknown`` counts by reason what could not be compared.

    ``state_sha256`` is of the state at ``position`` (next decision, next outcome, clock), empty
    if the replay stopped before.
    """

    partition: int
    begin: int
    end: int
    compared: int = 0
    equal: int = 0
    unknown: dict[str, int] = field(default_factory=dict)
    differences: list[Difference] = field(default_factory=list)
    stopped: str = ""
    position: tuple[int, ...] = ()
    state_sha256: str = ""


@dataclass(slots=True, kw_only=True)
class Report:
    """All partitions."""

    partitions: list[PartitionReport]

    @property
    def differs(self) -> bool:
        """Return whether any decision came out otherwise."""
        return any(p.differences for p in self.partitions)

    @property
    def complete(self) -> bool:
        """Return whether every decision could be made anew."""
        return not any(p.unknown or p.stopped for p in self.partitions)

    def as_dict(self, *, differences_max: int) -> dict[str, Any]:
        """Return the report for JSON."""
        parts = []
        for part in self.partitions:
            found = asdict(part)
            found["different"] = len(part.differences)
            found["differences"] = found["differences"][:differences_max]
            parts.append(found)
        totals = {
            name: sum(part[name] for part in parts) for name in ("compared", "equal", "different")
        }
        ok = self.complete and not self.differs
        return {"ok": ok, "complete": self.complete, **totals, "partitions": parts}


async def replay_log(
    kafka: str, *, begin: Bound, end: Bound, partitions: Sequence[int] | None, limits: Limits,
    make_intake: Callable[[Catalog], Intake], features: Callable[[Catalog], str],
) -> Report:  # fmt: skip
    """Replay the decisions of these partitions (all without any) from ``begin`` to ``end``.

    Raises
    ------
    LogError
        If a topic does not exist.
    ValueError
        If a partition does not.
    """
    reader = LogReader(kafka)
    await reader.start()
    try:
        numbers = await reader.partitions(topics.DECISIONS)
        source = Source(
            kafka=kafka,
            reader=reader,
            histories=await Histories.read(reader),
            partitions=len(numbers),
            limits=limits,
            make_intake=make_intake,
            features=features,
        )
        wanted = numbers if partitions is None else partitions
        unknown = sorted(set(wanted) - set(numbers))
        if unknown:
            raise ValueError(f"{topics.DECISIONS} has no partition {unknown[0]}")
        return Report(partitions=[await _replay(source, n, begin, end) for n in wanted])
    finally:
        await reader.stop()


async def _replay(source: Source, number: int, begin: Bound, end: Bound) -> PartitionReport:
    reader = source.reader
    first, last = await reader.bounds(topics.DECISIONS, number)
    start = await _offset(reader, number, begin, first)
    until = min(await _offset(reader, number, end, last), last)
    report = PartitionReport(partition=number, begin=start, end=until)
    replayer = None
    try:
        await _need_whole(reader, number)
        make_from = await _make_from(reader, number, start, until)
        replayer = Replayer(source, number, make_from=make_from, compare_from=start)
        await replayer.run(until)
        ends = None
        if until == last:
            ends = last, (await reader.bounds(topics.OUTCOMES, number))[1]
        report.position, report.state_sha256 = await replayer.past.finish(ends)
    except DivergedError as exc:
        report.stopped = "a round decided other requests: the rest would differ for that"
        report.differences.append(exc.difference)
    except (StoppedError, LogError) as exc:
        report.stopped = str(exc)
    if replayer is not None:
        tally = replayer.tally
        report.compared, report.equal = tally.compared, tally.equal
        report.unknown = tally.unknown
        report.differences = [*tally.differences, *report.differences]
    return report


async def _need_whole(reader: LogReader, number: int) -> None:
    for topic in (topics.DECISIONS, topics.OUTCOMES):
        first, _ = await reader.bounds(topic, number)
        if first > 0:
            raise StoppedError(
                f"{topic}/{number} begins at offset {first}: what lay before is gone, and the "
                "state follows from all of it"
            )


async def _offset(reader: LogReader, number: int, bound: Bound, default: int) -> int:
    if bound.at_ms is not None:
        return await reader.offset_at(topics.DECISIONS, number, bound.at_ms)
    return default if bound.offset is None else bound.offset


async def _make_from(reader: LogReader, number: int, start: int, until: int) -> int:
    """Return where to begin to decide: where the spend curve was made that the first ones read."""
    least = start
    async for records in reader.read(
        topics.DECISIONS, number, start, min(start + _CURVE_REACH, until)
    ):
        for record in records:
            try:
                seen = decode(Decision, record.value).offsets
            except BadRecordError:
                continue
            if seen.decisions >= 0:
                least = min(least, seen.decisions, seen.curve if seen.curve >= 0 else start)
    return least
