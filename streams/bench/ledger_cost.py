"""What the sink and Postgres need for decisions that lie on the broker."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import psycopg

from streams import topics
from streams.bench.backlog import DEADLINE_S
from streams.bench.programs import TOLLWAY, Program, cpu_seconds, tree_cpu_seconds
from streams.ledger.migrate import upgrade

_POLL_S = 0.2


async def sink_cost(kafka: str, home: Path, *, partitions: int, decisions: int) -> dict[str, float]:
    """Return decisions booked per second, and processor seconds per million decisions.

    The sink books what a benchmark has left on the topics, on a Postgres of its own.
    """
    from streams.embedded import PostgresServer

    server = PostgresServer(home / "postgres")
    await asyncio.to_thread(server.start)
    try:
        url = server.create_database("bench")
        await asyncio.to_thread(upgrade, url)
        settings = {
            "TOLLWAY_KAFKA": kafka, "TOLLWAY_DATABASE_URL": url, "TOLLWAY_HOME": str(home),
            "TOLLWAY_PARTITIONS": str(partitions), "TOLLWAY_LOG_LEVEL": "warning",
        }  # fmt: skip
        return await _book(Program([*TOLLWAY, "sink"], settings), url, server.pid, decisions)
    finally:
        await asyncio.to_thread(server.stop)


async def _book(
    sink: Program, url: str, postgres_pid: int | None, decisions: int
) -> dict[str, float]:
    marks: list[tuple[int, float, float, float]] = []
    with sink:
        deadline = time.monotonic() + DEADLINE_S
        while not marks or marks[-1][0] < decisions:
            await asyncio.sleep(_POLL_S)
            booked, now = await asyncio.to_thread(_booked, url), time.monotonic()
            if booked:
                marks.append((booked, now, cpu_seconds(sink.pid), tree_cpu_seconds(postgres_pid)))
            sink.check()
            if now > deadline:
                sink.fail(f"booked {booked} of {decisions} decisions in {DEADLINE_S} s")
    (first, begun, sink_cpu, postgres_cpu), last = marks[0], marks[-1]
    count = max(last[0] - first, 1)
    return {
        "decisions_per_s": round(count / max(last[1] - begun, _POLL_S)),
        "sink_cpu_s_per_million": round((last[2] - sink_cpu) / count * 1e6, 1),
        "postgres_cpu_s_per_million": round((last[3] - postgres_cpu) / count * 1e6, 1),
    }


def _booked(url: str) -> int:
    conninfo = url.replace("postgresql+psycopg://", "postgresql://")
    with psycopg.connect(conninfo) as connection:
        row = connection.execute(
            "SELECT coalesce(sum(next_offset), 0)::bigint FROM cursors WHERE topic = %s",
            [topics.DECISIONS],
        ).fetchone()
    return 0 if row is None else int(row[0])
