"""Pairs of reserve and settle that the sink's code books, beside COPY of the same rows.

Both write to one Postgres with its durable settings, each into a database of its own with the
ledger's tables, indexes and triggers, in transactions of equal size. The sink reads JSON, folds,
chains and books, as it does in production; the other program finds the rows ready, copies them
into temporary tables and inserts them from there with ON CONFLICT DO NOTHING.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import zip_longest
from typing import Any, LiteralString

import numpy as np
import psycopg
from psycopg import sql

from streams.bench.figures import ratio, ratio_lines, spread, table
from streams.collector import relax_collector
from streams.embedded import PostgresServer
from streams.ledger.chain_check import JOURNALS, Journal
from streams.ledger.database import connect_sink, connection_string
from streams.ledger.migrate import upgrade
from streams.ledger.rows import Raw
from streams.ledger.unit import Batch
from streams.ledger.writer import LedgerWriter
from streams.records import (
    BudgetPosition,
    Candidate,
    Candidates,
    Decision,
    Outcome,
    PriceTag,
    Seen,
    Usage,
    decision_id,
    encode,
)

T0_MS = 1_800_000_000_000
_ROOTS = 32
_TOPICS = ("decisions", "outcomes")

Say = Callable[[str], None]
Pair = tuple[bytes, bytes, bytes]
"""A decision, its outcome, and the key of both."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What is measured: how many pairs, how many of them at once, and how large decisions are."""

    pairs: int = 20_000
    flush: int = 2_500
    rounds: int = 5
    arms: int = 10
    features: int = 26


def make_pairs(shape: Shape, *, start: int, roots: Sequence[str] = ()) -> Iterator[Pair]:
    """Yield decisions with all candidates, features and budgets, each with its outcome."""
    rng = np.random.default_rng([5_000, start])
    features = rng.normal(size=(shape.pairs, shape.features)).astype("<f4")
    tokens = rng.integers(20, 1_000, size=(shape.pairs, 2)).tolist()
    roots = roots or [f"root-{number}" for number in range(_ROOTS)]
    arms = [f"model-{number}@bench" for number in range(shape.arms)]
    for row in range(shape.pairs):
        number = start + row
        root, name = roots[number % len(roots)], f"bench-{number}"
        path = (root, f"{root}/team", f"{root}/team/key-{number % 64}")
        chosen, (prompt, completion) = row % len(arms), tokens[row]
        bound = 50 * prompt + 200 * 1_024
        decision = Decision(
            decision_id=decision_id(root, name),
            request_id=name,
            budget=path[-1],
            decided_ms=T0_MS + number // 10,
            offsets=Seen(number, number - number % 64, number, 100, 5),
            arm=arms[chosen],
            input_tokens=prompt,
            max_output_tokens=1_024,
            reserved_nanousd=bound,
            expires_ms=T0_MS + number // 10 + 600_000,
            price=PriceTag(1 + chosen, 50_000, 200_000),
            reward=0.5 + row / 1e6,
            cost_nanousd=bound // 3,
            propensity=1.0,
            policy="pareto",
            features=base64.b64encode(features[row].tobytes()).decode(),
            seed=number * 7_919,
            candidates=Candidates.of(
                Candidate(arm, 0.4 + i / 17, bound // (i + 3), bound, 0.3 - i / 31, "score")
                for i, arm in enumerate(arms)
            ),
            budgets=[
                BudgetPosition(budget, T0_MS, 10**15, bound * row, 70 * number, 1 / 81, 1e-4)
                for budget in path
            ],
        )
        outcome = Outcome(
            request_id=name,
            decision_id=decision.decision_id,
            usage=Usage(prompt, completion),
            reward=row % 100 / 100,
            latency_ms=200 + completion,
        )
        yield encode(decision), encode(outcome), root.encode()


def measure(server: PostgresServer, shape: Shape, *, say: Say) -> dict[str, Any]:
    """Return pairs per second of both, and their ratio, over interleaved rounds."""
    rates: dict[str, list[float]] = {"sink": [], "copy_on_conflict": []}
    cpu: list[float] = []
    relax_collector()
    with _database(server, "bench_sink") as mine, _database(server, "bench_copy") as other:
        writer = LedgerWriter(mine, decisions=_TOPICS[0], outcomes=_TOPICS[1])
        unit = writer.claim(0, partitions=1)
        with connect_sink(other) as connection:
            copier = _Copier(connection)
            for number in range(shape.rounds):
                start = number * shape.pairs
                batches = list(_batches(shape, start))
                began, began_cpu = time.perf_counter(), time.process_time()
                for batch, following in zip_longest(batches, batches[1:]):
                    ahead = None if following is None else (unit, following)
                    writer.flush(unit, batch, following=ahead)
                rates["sink"].append(shape.pairs / (time.perf_counter() - began))
                cpu.append((time.process_time() - began_cpu) / shape.pairs * 1e6)
                rows = _read_rows(mine, start, shape)
                began = time.perf_counter()
                for part in rows:
                    copier.copy(part)
                rates["copy_on_conflict"].append(shape.pairs / (time.perf_counter() - began))
                say(", ".join(f"{name} {found[-1]:,.0f}/s" for name, found in rates.items()))
        writer.close()
        fsync = _setting(mine, "fsync")
        if _counts(mine) != _counts(other):
            raise RuntimeError(f"not the same rows: {_counts(mine)} and {_counts(other)}")
    return {
        "pairs_per_s": spread(rates["sink"])["median"],
        "ratios": {"copy_on_conflict": ratio(rates["sink"], rates["copy_on_conflict"])},
        "per_s": {name: spread(found) for name, found in rates.items()},
        "sink_cpu_s_per_million": spread(cpu),
        "fsync": fsync,
        "shape": asdict(shape),
    }


def show(result: dict[str, Any]) -> str:
    """Return the result as text."""
    rows = [[name, f["median"], f["min"], f["max"]] for name, f in result["per_s"].items()]
    lines = [table(rows, header=["", "pairs/s", "min", "max"]), ratio_lines(result["ratios"])]
    cpu = result["sink_cpu_s_per_million"]["median"]
    lines.append(f"sink: {cpu} processor seconds per million pairs, besides Postgres; fsync on")
    if "lag" in result:
        rows = [[name.replace("_", " "), value] for name, value in result["lag"].items()]
        lines.append(table(rows, header=["lag", ""]))
    return "\n".join(lines)


def _batches(shape: Shape, start: int) -> Iterator[Batch]:
    pairs = list(make_pairs(shape, start=start))
    for low in range(0, shape.pairs, shape.flush):
        some = list(enumerate(pairs[low : low + shape.flush], start + low))
        yield Batch(
            decisions=[Raw(at, T0_MS + at // 10, d, key) for at, (d, _, key) in some],
            outcomes=[Raw(at, T0_MS + at // 10, o, key) for at, (_, o, key) in some],
        )


@contextmanager
def _database(server: PostgresServer, name: str) -> Iterator[str]:
    server.drop_database(name)
    url = server.create_database(name)
    upgrade(url)
    yield url
    server.drop_database(name)


def _counts(url: str) -> list[int]:
    """Return how many rows each journal has."""
    with psycopg.connect(connection_string(url)) as connection:
        queries = [_composed("SELECT count(*) FROM {table}", journal) for journal in JOURNALS]
        return [int(connection.execute(query).fetchall()[0][0]) for query in queries]


def _setting(url: str, name: str) -> str:
    with psycopg.connect(connection_string(url)) as connection:
        row = connection.execute(f"SHOW {name}".encode()).fetchone()
    return str(row[0]) if row else ""


_ROWS = "SELECT {names} FROM {table} WHERE {place} >= {low} AND {place} < {high} ORDER BY {order}"
_MAKE = "CREATE TEMP TABLE {new} ON COMMIT DELETE ROWS AS SELECT {names} FROM {table} WITH NO DATA"
_COPY = "COPY {new} ({names}) FROM STDIN (FORMAT BINARY)"
_INSERT = "INSERT INTO {table} ({names}) SELECT {names} FROM {new} ON CONFLICT DO NOTHING"


def _composed(template: LiteralString, journal: Journal, **more: sql.Composable) -> sql.Composed:
    return sql.SQL(template).format(
        table=sql.Identifier(journal.table.name),
        new=sql.Identifier(f"new_{journal.table.name}"),
        names=sql.SQL(", ").join(map(sql.Identifier, journal.target.columns)),
        order=sql.Identifier(journal.place),
        **more,
    )


def _read_rows(url: str, start: int, shape: Shape) -> list[list[list[tuple[Any, ...]]]]:
    """Return what the sink has booked of these pairs, by transaction and by journal."""
    parts: list[list[list[tuple[Any, ...]]]] = []
    end = start + shape.pairs
    with psycopg.connect(connection_string(url)) as connection:
        for low in range(start, end, shape.flush):
            part = []
            for journal in JOURNALS:
                place = "source_offset" if journal.place == "line" else journal.place
                bounds = {"low": sql.Literal(low), "high": sql.Literal(min(low + shape.flush, end))}
                query = _composed(_ROWS, journal, place=sql.Identifier(place), **bounds)
                part.append(connection.execute(query).fetchall())
            parts.append(part)
    return parts


class _Copier:
    """Writes rows that are ready by COPY into temporary tables and INSERT ON CONFLICT."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection
        for journal in JOURNALS:
            connection.execute(_composed(_MAKE, journal))
        connection.execute("INSERT INTO cursors (topic, partition) VALUES ('decisions', 0)")

    def copy(self, part: list[list[tuple[Any, ...]]]) -> None:
        """Write one transaction."""
        with self._connection.transaction(), self._connection.cursor() as cursor:
            cursor.execute("UPDATE cursors SET next_offset = next_offset + %s", [len(part[1])])
            for journal, rows in zip(JOURNALS, part, strict=True):
                with cursor.copy(_composed(_COPY, journal)) as copy:
                    copy.set_types(journal.target.types)
                    for row in rows:
                        copy.write_row(row)
                cursor.execute(_composed(_INSERT, journal))
