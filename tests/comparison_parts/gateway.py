"""A budget as gateways have it: check, call, add; spend is queued, drained and then committed.

Each process keeps what it believes that each budget has spent. A request is let through while that
is below the limit; when its call is over the cost is added and queued. Once a second the queue is
drained and what was in it is written in one transaction; every few seconds the totals are read
anew, so that processes learn of each other.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections import defaultdict
from contextlib import suppress
from typing import Any

import psycopg
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from tests.comparison_parts.common import DATABASE, KAFKA, LIMITS, cost_nanousd, decision_of

FLUSH_S = 1.0
REFRESH_S = 5.0
SPEND = "INSERT INTO spend (request_id, root, amount_nanousd) VALUES (%s, %s, %s)"
TOTALS = "SELECT root, sum(amount_nanousd)::bigint FROM spend GROUP BY root"


class Gateway:
    """One process."""

    def __init__(self) -> None:
        self.spent: dict[str, int] = defaultdict(int)
        self.queue: list[tuple[str, str, int]] = []

    def admit(self, key: bytes, request: dict[str, Any]) -> bytes:
        """Check the budget, and say that the call is made, or not."""
        return decision_of(request, fits=self.spent[key.decode()] < LIMITS[key.decode()])

    def add(self, key: bytes, outcome: dict[str, Any]) -> None:
        """Add what a call has cost."""
        root, cost = key.decode(), cost_nanousd(outcome["usage"])
        self.spent[root] += cost
        self.queue.append((outcome["request_id"], root, cost))

    async def flush(self) -> None:
        """Drain the queue, then commit what was in it."""
        while True:
            await asyncio.sleep(FLUSH_S)
            drained, self.queue = self.queue, []
            with suppress(psycopg.Error):
                async with await psycopg.AsyncConnection.connect(
                    DATABASE, connect_timeout=5
                ) as connection:
                    await connection.cursor().executemany(SPEND, drained)

    async def refresh(self) -> None:
        """Learn what the other processes have spent."""
        while True:
            with suppress(psycopg.Error):
                async with await psycopg.AsyncConnection.connect(
                    DATABASE, connect_timeout=5
                ) as connection:
                    rows = await (await connection.execute(TOTALS)).fetchall()
                totals = defaultdict(int, {root: int(total) for root, total in rows})
                for _, root, cost in self.queue:
                    totals[root] += cost
                self.spent = totals
            await asyncio.sleep(REFRESH_S)

    async def serve(self) -> None:
        """Take requests and answers of calls as they come."""
        producer = AIOKafkaProducer(bootstrap_servers=KAFKA, acks="all")
        consumer = AIOKafkaConsumer(
            "tollway.requests.v1", "tollway.outcomes.v1", bootstrap_servers=KAFKA,
            group_id="gateway", auto_offset_reset="earliest", session_timeout_ms=3_000,
            heartbeat_interval_ms=700, auto_commit_interval_ms=500,
        )  # fmt: skip
        await producer.start()
        await consumer.start()
        try:
            async for record in consumer:
                fields = json.loads(record.value)
                if record.topic == "tollway.outcomes.v1":
                    self.add(record.key, fields)
                else:
                    value = self.admit(record.key, fields)
                    await producer.send("tollway.decisions.v1", value, key=record.key)
        finally:
            await consumer.stop()
            await producer.stop()


async def main() -> None:
    """Serve until SIGTERM."""
    gateway = Gateway()
    tasks = [
        asyncio.create_task(work()) for work in (gateway.serve, gateway.flush, gateway.refresh)
    ]
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait([*tasks, stopped], return_when=asyncio.FIRST_COMPLETED)
    if stop.is_set():
        # In good order: what is queued is flushed.
        tasks[0].cancel()
        await asyncio.sleep(2 * FLUSH_S)
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, Exception):
            raise result


if __name__ == "__main__":
    asyncio.run(main())
