"""How fast a sink works off a backlog, and how far behind it falls at a given rate."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from streams import topics
from streams.bench.backlog import DEADLINE_S
from streams.bench.ledger import Pair, Shape, make_pairs
from streams.bench.programs import TOLLWAY, Program, cpu_seconds, tree_cpu_seconds
from streams.embedded import PostgresServer
from streams.ledger.database import connection_string
from streams.ledger.migrate import upgrade
from streams.publisher import Outbox, make_producer

PARTITIONS = 8
_TICK_S = 0.1
_POLL_S = 0.2

Say = Callable[[str], None]
Ledger = psycopg.Connection[tuple[Any, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """``backlog`` pairs to work off, then ``rate`` pairs a second for ``seconds``."""

    backlog: int = 40_000
    rate: int = 10_000
    seconds: float = 6.0


async def measure(kafka: str, home: Path, load: Load, *, say: Say) -> dict[str, Any]:
    """Return what one sink sustains, one reserve and one settle a pair, and how it falls behind."""
    await topics.create(kafka, app_id="tollway", partitions=PARTITIONS)
    server = PostgresServer(home / "postgres")
    await asyncio.to_thread(server.start)
    try:
        url = server.create_database("bench")
        await asyncio.to_thread(upgrade, url)
        settings = {
            "TOLLWAY_KAFKA": kafka, "TOLLWAY_DATABASE_URL": url, "TOLLWAY_HOME": str(home),
            "TOLLWAY_PARTITIONS": str(PARTITIONS), "TOLLWAY_LOG_LEVEL": "warning",
        }  # fmt: skip
        async with _Feeder(kafka) as feeder:
            await feeder.append(list(make_pairs(Shape(pairs=load.backlog), start=0)))
            # One connection for all looks: to open one takes longer than the look itself.
            with (
                psycopg.connect(connection_string(url), autocommit=True) as ledger,
                Program([*TOLLWAY, "sink"], settings) as sink,
            ):
                result = await _work_off(sink, ledger, server.pid, load.backlog)
                say(f"backlog: {result['pairs_per_s']:,} pairs/s")
                return result | await _follow(feeder, sink, ledger, load, say=say)
    finally:
        await asyncio.to_thread(server.stop)


class _Feeder:
    """Appends pairs by one producer."""

    def __init__(self, kafka: str) -> None:
        self._producer = make_producer(kafka)
        self._outboxes = {
            (topic, number): Outbox(self._producer, topic, number)
            for topic in (topics.DECISIONS, topics.OUTCOMES)
            for number in range(PARTITIONS)
        }

    async def __aenter__(self) -> _Feeder:
        await self._producer.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._producer.stop()

    async def append(self, pairs: Sequence[Pair]) -> None:
        """Append them, and wait until the broker has them."""
        parts: dict[int, list[Pair]] = {}
        for pair in pairs:
            parts.setdefault(topics.home_partition(pair[2], PARTITIONS), []).append(pair)
        for number, part in parts.items():
            keys = [key for *_, key in part]
            for topic, values in (
                (topics.DECISIONS, [decision for decision, *_ in part]),
                (topics.OUTCOMES, [outcome for _, outcome, _ in part]),
            ):
                await self._outboxes[topic, number].send(None, values, keys=keys)
        for outbox in self._outboxes.values():
            await outbox.flush()


async def _work_off(
    sink: Program, ledger: Ledger, postgres_pid: int | None, pairs: int
) -> dict[str, float]:
    marks: list[tuple[int, float, float, float]] = []
    deadline = time.monotonic() + DEADLINE_S
    while not marks or marks[-1][0] < 2 * pairs:
        await asyncio.sleep(_POLL_S)
        booked = await asyncio.to_thread(_booked, ledger)
        if booked:
            cpu = cpu_seconds(sink.pid), tree_cpu_seconds(postgres_pid)
            marks.append((booked, time.monotonic(), *cpu))
        _check(sink, deadline)
    first, last = marks[0], marks[-1]
    done = max(last[0] - first[0], 1) / 2
    return {
        "pairs_per_s": round(done / max(last[1] - first[1], _POLL_S)),
        "sink_cpu_s_per_million": round((last[2] - first[2]) / done * 1e6, 1),
        "postgres_cpu_s_per_million": round((last[3] - first[3]) / done * 1e6, 1),
    }


async def _follow(
    feeder: _Feeder, sink: Program, ledger: Ledger, load: Load, *, say: Say
) -> dict[str, float]:
    """Append at the rate, and look how many pairs are not booked yet."""
    count = int(load.rate * load.seconds)
    pairs = list(make_pairs(Shape(pairs=count), start=load.backlog))
    before, appended, lags = await asyncio.to_thread(_booked, ledger), 0, []
    began = looked = time.monotonic()
    while appended < count:
        due = min(int((time.monotonic() - began + _TICK_S) * load.rate), count)
        await feeder.append(pairs[appended:due])
        appended = due
        if time.monotonic() - looked >= _POLL_S:
            looked = time.monotonic()
            lags.append(appended - (await asyncio.to_thread(_booked, ledger) - before) / 2)
        await asyncio.sleep(max(began + appended / load.rate - _TICK_S - time.monotonic(), 0.0))
    ended = time.monotonic()
    while await asyncio.to_thread(_booked, ledger) < before + 2 * count:
        await asyncio.sleep(_POLL_S / 2)
        _check(sink, ended + DEADLINE_S)
    result = {
        "wanted_pairs_per_s": float(load.rate),
        "appended_pairs_per_s": round(count / (ended - began)),
        "largest_lag_pairs": round(max(lags)),
        "lag_at_the_end_pairs": round(lags[-1]),
        "booked_pairs_per_s": round(count / (time.monotonic() - began)),
        "s_until_nothing_is_left": round(time.monotonic() - ended, 2),
    }
    say(", ".join(f"{name} {value:,}" for name, value in result.items()))
    return result


def _check(sink: Program, deadline: float) -> None:
    sink.check()
    if time.monotonic() > deadline:
        sink.fail(f"was not done in {DEADLINE_S} s")


def _booked(ledger: Ledger) -> int:
    """Return how many records of both topics are booked."""
    row = ledger.execute(
        "SELECT coalesce(sum(next_offset), 0)::bigint FROM cursors WHERE topic = ANY(%s)",
        [[topics.DECISIONS, topics.OUTCOMES]],
    ).fetchone()
    return 0 if row is None else int(row[0])
