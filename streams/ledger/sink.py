"""The ledger sink: follows decisions and outcomes and books them, each exactly once.

Kafka's group only says which partitions are this process's; where to read on stands in the
ledger. While the database is away the partitions are paused and the same batch is tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from sqlalchemy.exc import DBAPIError

from streams.ledger import migrate
from streams.ledger.catalog import follow_catalog
from streams.ledger.database import connect_sink, is_transient
from streams.ledger.errors import LedgerTopicsError
from streams.ledger.heads import HeadPublisher
from streams.ledger.member import STOP_S, Sink
from streams.ledger.threads import run_in_thread
from streams.ledger.unit import Counts
from streams.ledger.writer import Connection, LedgerWriter
from streams.patience import until_there
from streams.stopping import stop_consumer
from streams.topics import CATALOG, DECISIONS, LEDGER_HEADS, OUTCOMES


async def run_sink(
    kafka: str,
    database_url: str,
    *,
    stop: asyncio.Event,
    decisions: str = DECISIONS,
    outcomes: str = OUTCOMES,
    catalog: str | None = CATALOG,
    heads: str = LEDGER_HEADS,
    heads_key: bytes | None = None,
    group: str = "tollway-ledger",
    session_timeout_s: float = 6.0,
    accept_gaps: bool = False,
    counts: Counts | None = None,
    connect: Callable[[str], Connection] = connect_sink,
) -> Counts:
    """Book what arrives until ``stop`` is set; then finish the batch in hand and leave the group.

    Waits for database and Kafka if they are away.

    Several may run, in one process or many; partitions are shared out. ``counts`` is kept up to
    date while it runs. ``accept_gaps`` goes on where records are gone for good, and counts them.
    With a ``heads_key`` the heads of the ledger's chains are signed and published.

    Raises
    ------
    LedgerSchemaError, LedgerTopicsError
        At the start, if the database or the topics are not what they must be.
    LedgerHaltError
        At the end, if a partition stood still: records are gone from its topics, or the ledger
        holds rows that no sink has booked.
    """
    schema = partial(run_in_thread, partial(migrate.require_head, database_url))
    if not await until_there(schema, what="Postgres", stop=stop, is_away=_is_database_away):
        return counts or Counts()
    consumer = AIOKafkaConsumer(
        bootstrap_servers=kafka,
        group_id=group,
        client_id="tollway-ledger",
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        partition_assignment_strategy=(RangePartitionAssignor,),
        session_timeout_ms=int(session_timeout_s * 1_000),
        heartbeat_interval_ms=int(session_timeout_s * 1_000 / 5),
        fetch_max_bytes=16 << 20,
        # Enough for batches whose commit is no large part of them.
        max_partition_fetch_bytes=4 << 20,
    )
    writer = LedgerWriter(database_url, decisions=decisions, outcomes=outcomes, connect=connect)
    if counts is not None:
        writer.counts = counts
    publisher = HeadPublisher(kafka, heads, heads_key) if heads_key else None
    sink = Sink(
        consumer,
        writer,
        decisions=decisions,
        outcomes=outcomes,
        accept_gaps=accept_gaps,
        heads=publisher,
    )
    follower: asyncio.Task[None] | None = None
    try:
        topics = partial(_check_topics, kafka, decisions, outcomes, heads if publisher else None)
        for call in (topics, consumer.start, *([publisher.start] if publisher else [])):
            await until_there(call, what="Kafka", stop=stop)
        if not stop.is_set():
            sink.join()
        if catalog is not None and not stop.is_set():
            follower = asyncio.create_task(follow_catalog(kafka, database_url, catalog))
        await follow(sink, stop=stop, beside=follower)
    finally:
        if follower is not None:
            follower.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await follower
        if publisher is not None:
            await publisher.stop()
        await stop_consumer(consumer)
        if not sink.busy:
            writer.close()
    if sink.halted:
        raise next(iter(sink.halted.values()))
    return writer.counts


async def follow(
    sink: Sink, *, stop: asyncio.Event, beside: asyncio.Task[None] | None = None
) -> None:
    """Step until ``stop`` is set, then book what is in hand; ends with ``beside`` if that fails."""
    stopped = asyncio.create_task(stop.wait())
    try:
        while not stop.is_set():
            await _either(asyncio.create_task(sink.step()), stopped)
            if beside is not None and beside.done():
                beside.result()
    finally:
        stopped.cancel()
    if not sink.busy:
        await sink.leave()


def _is_database_away(error: Exception) -> bool:
    cause = error.orig if isinstance(error, DBAPIError) else error
    return isinstance(cause, Exception) and is_transient(cause)


async def _check_topics(kafka: str, decisions: str, outcomes: str, heads: str | None) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    try:
        await admin.start()
        found = await admin.describe_topics([decisions, outcomes, *([heads] if heads else [])])
    finally:
        await admin.close()
    counts = {topic["topic"]: len(topic["partitions"]) for topic in found}
    if heads and not counts.pop(heads):
        raise LedgerTopicsError(f"topic {heads} does not exist; run `tollway topics`")
    if 0 in counts.values() or len(set(counts.values())) != 1:
        raise LedgerTopicsError(
            f"partitions are {counts}: both topics must exist, with equal counts; "
            "run `tollway topics`"
        )


async def _either(step: asyncio.Task[None], stopped: asyncio.Task[Literal[True]]) -> None:
    """Wait for the step; once stopped, no longer than a flush can take."""
    tasks: list[asyncio.Task[Any]] = [step, stopped]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not step.done():
            await asyncio.wait([step], timeout=STOP_S)
    finally:
        step.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await step
