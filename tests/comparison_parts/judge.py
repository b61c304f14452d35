"""What became of each request under any of the designs: calls made, money booked, money spent."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import psycopg
from aiokafka import AIOKafkaConsumer, TopicPartition

from streams.ledger.database import connection_string
from streams.topics import DECISIONS, OUTCOMES, REQUESTS
from tests.nemesis_parts.world import PARTITIONS, World

BOOKED = "SELECT request_id, amount_nanousd FROM spend"
LEDGER = (
    "SELECT d.request_id, sum(t.amount_nanousd)::bigint FROM transfers t "
    "JOIN decisions d USING (decision_id) WHERE t.kind IN ('settle', 'overrun') "
    "GROUP BY d.decision_id, d.request_id"
)


class Call(msgspec.Struct):
    """A record that says that a call is made; no arm means that it is not."""

    request_id: str
    budget: str
    arm: str | None = None
    price: dict[str, Any] | None = None


@dataclass(slots=True, kw_only=True)
class Judgement:
    """What one design did with one load under one seed's faults."""

    requests: int = 0
    faults: int = 0
    lost_requests: int = 0
    lost_spend: int = 0
    doubled_calls: int = 0
    doubled_spend: int = 0
    overspent_nanousd: int = 0
    limit_nanousd: int = 0

    @property
    def lost(self) -> int:
        """Return requests without an answer, and calls whose cost was not booked."""
        return self.lost_requests + self.lost_spend

    @property
    def doubled(self) -> int:
        """Return calls that were made again, and costs that were booked again."""
        return self.doubled_calls + self.doubled_spend


async def judge(kafka: str, database_url: str, world: World, *, first_counts: bool) -> Judgement:
    """Read everything that is committed and judge it.

    With ``first_counts`` readers go by the first decision for a request, as Tollway's do; the
    other designs promise that there is one.
    """
    calls = [msgspec.json.decode(v, type=Call) async for v in _values(kafka, DECISIONS)]
    asked = [json.loads(value)["request_id"] async for value in _values(kafka, REQUESTS)]
    reports = [json.loads(value) async for value in _values(kafka, OUTCOMES)]
    with psycopg.connect(connection_string(database_url)) as connection:
        rows = connection.execute(LEDGER if first_counts else BOOKED).fetchall()
    return weigh(asked, calls, reports, rows, world, first_counts=first_counts)


def weigh(
    asked: Sequence[str], calls: Iterable[Call], reports: Iterable[Mapping[str, Any]],
    rows: Iterable[tuple[str, int]], world: World, *, first_counts: bool,
) -> Judgement:  # fmt: skip
    """Judge by the requests' ids, the calls and reports in order, and the costs that are booked."""
    result = Judgement(requests=len(asked))
    made: dict[str, list[Call]] = defaultdict(list)
    for call in calls:
        if not (first_counts and made[call.request_id]):
            made[call.request_id].append(call)
    usage: dict[str, Mapping[str, Any]] = {}
    for report in reports:
        usage.setdefault(report["request_id"], report)
    spent: Counter[str] = Counter()
    costs: dict[str, int] = {}
    for name in asked:
        result.lost_requests += not made[name]
        paid = [call for call in made[name] if call.arm is not None]
        result.doubled_calls += max(len(paid) - 1, 0)
        for call in paid:
            if name in usage:
                costs[name] = _cost_nanousd(call, usage[name]["usage"])
                spent[call.budget.partition("/")[0]] += costs[name]
    booked: dict[str, list[int]] = defaultdict(list)
    for name, amount in rows:
        booked[name].append(int(amount))
    result.lost_spend = sum(costs[name] not in booked[name] for name in costs)
    result.doubled_spend = sum(len(amounts) - 1 for amounts in booked.values() if amounts)
    for root in world.roots:
        limit = world.budgets[root.name][0]
        if root.kind != "rich":
            result.limit_nanousd += limit
            result.overspent_nanousd += max(spent[root.name] - limit, 0)
    return result


def _cost_nanousd(call: Call, usage: Mapping[str, int]) -> int:
    assert call.price is not None
    cost = usage["prompt_tokens"] * call.price["input"]
    cost += usage["completion_tokens"] * call.price["output"]
    return -(-cost // 1_000)


async def _values(kafka: str, topic: str) -> AsyncIterator[bytes]:
    consumer = AIOKafkaConsumer(
        bootstrap_servers=kafka,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
    )
    await consumer.start()
    try:
        await consumer._client.force_metadata_update()
        for number in range(PARTITIONS):
            place = TopicPartition(topic, number)
            consumer.assign([place])
            end = (await consumer.end_offsets([place]))[place]
            while await consumer.position(place) < end:
                for record in (await consumer.getmany(place, timeout_ms=500)).get(place, ()):
                    yield record.value
    finally:
        await consumer.stop()
