"""What topics and ledger hold at the end, read once and as plainly as can be."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import msgspec
import psycopg

from streams.ledger.database import connection_string
from streams.log import LogReader
from streams.topics import DEAD_LETTERS, DECISIONS, OUTCOMES, REQUESTS
from tests.nemesis_parts.oracle import Place
from tests.nemesis_parts.world import PARTITIONS

Window = tuple[str, int, int, int, int]
"""Of a budget in a decision: path, start of its window, limit, reserved, settled."""


@dataclass(slots=True)
class Record:
    """A record as it lies in its topic."""

    place: Place
    at_ms: int
    key: bytes
    value: bytes

    @property
    def digest(self) -> str:
        """Return its content's SHA-256."""
        return sha256(self.value).hexdigest()


class Offsets(msgspec.Struct, frozen=True):
    """What a decision says that it had seen; ``decisions`` is where its call was to begin."""

    request: int
    outcomes: int
    decisions: int
    batch: int = 0


class Tag(msgspec.Struct):
    """The price that a decision pinned."""

    input: int
    output: int
    cached: int | None = None


class Decided(msgspec.Struct):
    """A decision, as far as it is checked."""

    decision_id: str
    request_id: str
    budget: str
    decided_ms: int
    offsets: Offsets
    arm: str | None = None
    rejected: str | None = None
    reserved_nanousd: int = 0
    expires_ms: int = 0
    price: Tag | None = None
    budgets: list[list[Any]] = []
    partition: int = -1
    offset: int = -1

    @property
    def root(self) -> str:
        """Return the root of its budget."""
        return self.budget.partition("/")[0]

    @property
    def call(self) -> tuple[int, ...]:
        """Return what all decisions that were made in one call have in common."""
        seen = self.offsets
        return self.partition, seen.decisions, seen.batch, seen.outcomes, self.decided_ms

    @property
    def windows(self) -> list[Window]:
        """Return where each budget of the path stood just after this decision."""
        return [tuple(b[:5]) for b in self.budgets]  # type: ignore[misc]


class Letter(msgspec.Struct):
    """A dead letter, as far as it is checked."""

    topic: str
    partition: int
    offset: int
    reason: str
    sha256: str


@dataclass(slots=True, kw_only=True)
class Evidence:
    """Everything that was read, each list in the order of its topic, partition by partition."""

    requests: list[Record] = field(default_factory=list)
    outcomes: list[Record] = field(default_factory=list)
    decisions: list[Decided] = field(default_factory=list)
    letters: dict[Place, list[Letter]] = field(default_factory=lambda: defaultdict(list))
    ends: dict[tuple[str, int], int] = field(default_factory=dict)

    def effective(self) -> dict[str, Decided]:
        """Return the decision at the lowest offset for each decision id."""
        first: dict[str, Decided] = {}
        for decided in self.decisions:
            first.setdefault(decided.decision_id, decided)
        return first


async def read_topics(kafka: str) -> Evidence:
    """Read everything."""
    found = Evidence()
    reader = LogReader(kafka)
    await reader.start()
    try:
        async for record in _records(reader, REQUESTS, found):
            found.requests.append(record)
        async for record in _records(reader, OUTCOMES, found):
            found.outcomes.append(record)
        async for record in _records(reader, DECISIONS, found):
            decided = msgspec.json.decode(record.value, type=Decided)
            _, decided.partition, decided.offset = record.place
            found.decisions.append(decided)
        async for record in _records(reader, DEAD_LETTERS, found):
            letter = msgspec.json.decode(record.value, type=Letter)
            found.letters[letter.topic, letter.partition, letter.offset].append(letter)
    finally:
        await reader.stop()
    return found


async def _records(reader: LogReader, topic: str, found: Evidence) -> AsyncIterator[Record]:
    for partition in range(PARTITIONS):
        first, end = await reader.bounds(topic, partition)
        found.ends[topic, partition] = 0
        async for records in reader.read(topic, partition, first, end):
            for r in records:
                place = (topic, partition, r.offset)
                yield Record(place, r.timestamp, r.key or b"", r.value or b"")
            # Behind the last record there may be markers, which nobody reads.
            found.ends[topic, partition] = records[-1].offset + 1


@dataclass(slots=True, kw_only=True)
class Ledger:
    """What the ledger holds: amounts by decision and kind, effective decisions, cursors."""

    amounts: dict[str, dict[str, int]] = field(default_factory=lambda: defaultdict(dict))
    kinds: Counter[tuple[str, str]] = field(default_factory=Counter)
    places: dict[str, tuple[int, int]] = field(default_factory=dict)
    nexts: dict[tuple[str, int], int] = field(default_factory=dict)
    swept_ms: dict[int, int] = field(default_factory=dict)
    outcomes: int = 0


def read_ledger(database_url: str) -> Ledger:
    """Read everything."""
    ledger = Ledger()
    with psycopg.connect(connection_string(database_url)) as connection:
        for identity, kind, amount in connection.execute(
            "SELECT decision_id, kind, amount_nanousd FROM transfers"
        ):
            ledger.amounts[identity][kind] = amount
            ledger.kinds[identity, kind] += 1
        for identity, partition, offset in connection.execute(
            "SELECT decision_id, partition, decision_offset FROM decisions"
        ):
            ledger.places[identity] = (partition, offset)
        for topic, partition, offset, swept_ms in connection.execute(
            "SELECT topic, partition, next_offset, swept_ms FROM cursors"
        ):
            ledger.nexts[topic, partition] = offset
            if topic == OUTCOMES:
                ledger.swept_ms[partition] = swept_ms
        row = connection.execute("SELECT count(*) FROM outcomes").fetchone()
        assert row is not None
        ledger.outcomes = row[0]
    return ledger
