"""The ledger of a simulation against its topics, by the product's own audit."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from psycopg.sql import Composed

from streams import topics
from streams.ledger.heads import read_heads
from streams.ledger.verify import PartitionCheck, Report
from tests.simulation import dialect
from tests.simulation.broker import Broker
from tests.simulation.consumer import Rereader
from tests.simulation.database import Postgres
from tests.simulation.sinks import KEY


async def check_books(database: Postgres, broker: Broker, partitions: int) -> Report:
    """Compare books, chain, heads and offsets with the topics; raises what it finds."""
    report, consumer = Report(), Rereader(broker, partitions)
    heads, unreadable = await read_heads(consumer, topics.LEDGER_HEADS)
    assert not unreadable
    for partition in range(partitions):
        cursor: Any = Snapshot(database, partition)
        names = (topics.DECISIONS, topics.OUTCOMES)
        check = PartitionCheck(report, cursor, names, partition)
        await check.read(consumer)  # type: ignore[arg-type]
        check.compare()
        check.compare_chain(heads.get(partition, []), KEY)
    assert report.ok, "; ".join(report.findings[:5])
    assert report.links_after_head == 0, f"{report.links_after_head} links without a head"
    return report


class Snapshot:
    """A cursor that looks at what is committed, between transactions."""

    def __init__(self, database: Postgres, partition: int) -> None:
        self._reader = database.shard(partition).reader
        self._rows: list[tuple[Any, ...]] = []

    def execute(self, text: str, parameters: Sequence[Any]) -> None:
        """Read."""
        found = self._reader.execute(dialect.translate(text), dialect.to_sqlite(parameters))
        self._rows = dialect.fetch(found)

    def fetchall(self) -> list[tuple[Any, ...]]:
        """Return the rows."""
        return self._rows

    @contextmanager
    def copy(self, statement: Composed) -> Iterator[Snapshot]:
        """Read what a binary COPY of a query returns."""
        text = statement.as_string(None)
        match = re.fullmatch(
            r'COPY \((SELECT (.*) FROM "(\w+)" .*)\) TO STDOUT \(FORMAT BINARY\)', text
        )
        assert match is not None, text
        (target,) = [t for s, t in dialect.TARGETS.items() if s.startswith(f'COPY "{match[3]}"')]
        types = dict(zip(target.columns, target.types, strict=True))
        columns = [types[name.strip('"')] for name in match[2].split(", ")]
        self._rows = [
            tuple(dialect.dump(type_, value) for type_, value in zip(columns, row, strict=True))
            for row in self._reader.execute(match[1])
        ]
        yield self

    def rows(self) -> list[tuple[Any, ...]]:
        """Return the rows' fields as bytes."""
        return self._rows
