"""A budget on stock Faust: two agents, two tables, spend written to Postgres as it comes.

    GUARANTEE=at_least_once python tests/comparison_parts/stock_faust.py worker --without-web

Reserve and settle, as carefully as an application on stock Faust would: the state lies in tables
with changelogs, each event is handled by one agent, and Faust's own processing guarantee is relied
upon for the rest. ``GUARANTEE`` is ``at_least_once`` or ``exactly_once``.
"""

from __future__ import annotations

import json
import os
from typing import Any

import faust
import psycopg

from tests.comparison_parts.common import (
    DATABASE,
    KAFKA,
    LIMITS,
    PARTITIONS,
    bound_nanousd,
    cost_nanousd,
    decision_of,
)

SPEND = "INSERT INTO spend (request_id, amount_nanousd) VALUES (%s, %s)"

app = faust.App(
    f"stock-{os.environ['GUARANTEE'].replace('_', '-')}",
    broker=f"kafka://{KAFKA}",
    datadir=f"{os.environ['TOLLWAY_HOME']}/faust-{os.getpid()}",
    store="memory://",
    processing_guarantee=os.environ["GUARANTEE"],
    topic_partitions=PARTITIONS,
    topic_disable_leader=True,
    broker_session_timeout=3.0,
    broker_heartbeat_interval=0.7,
    broker_commit_interval=0.5,
    stream_recovery_delay=0.0,
    web_enabled=False,
    key_serializer="raw",
    value_serializer="raw",
)
requests = app.topic("tollway.requests.v1")
outcomes = app.topic("tollway.outcomes.v1")
decisions = app.topic("tollway.decisions.v1")
held = app.Table("held", default=int, partitions=PARTITIONS)
"""By budget root: reserved and settled together, nano-dollars."""
calls = app.Table("calls", partitions=PARTITIONS)
"""By request: what is reserved for it; zero once it is settled."""


@app.agent(requests, name="decide")
async def decide(stream: Any) -> None:
    """Reserve what a request can cost at most, if the budget has it, and let the call be made."""
    async for key, value in stream.items():
        request = json.loads(value)
        root, name = key.decode(), request["request_id"]
        if name in calls:
            continue
        bound = bound_nanousd(request)
        fits = held[root] + bound <= LIMITS[root]
        if fits:
            held[root] += bound
        calls[name] = bound if fits else 0
        await decisions.send(key=key, value=decision_of(request, fits=fits))


@app.agent(outcomes, name="settle")
async def settle(stream: Any) -> None:
    """Replace what was reserved by what the call cost, and book it."""
    connection: psycopg.AsyncConnection[Any] | None = None
    async for key, value in stream.items():
        outcome = json.loads(value)
        root, name = key.decode(), outcome["request_id"]
        bound = calls.get(name)
        if not bound:
            continue
        cost = cost_nanousd(outcome["usage"])
        if connection is None or connection.closed:
            connection = await psycopg.AsyncConnection.connect(DATABASE, connect_timeout=5)
        async with connection.transaction():
            await connection.execute(SPEND, [name, cost])
        held[root] += cost - bound
        calls[name] = 0


if __name__ == "__main__":
    app.main()
