"""Follows the catalog topic into ``budget_limits`` and ``prices``, which the audits read.

Every sink process follows it, without a group: the rows are keyed by their offset, so a second
writer changes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from functools import partial

import psycopg
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from streams.ledger import rows
from streams.ledger.database import connect_sink, describe, is_transient
from streams.ledger.rows import Raw, Row
from streams.ledger.threads import run_in_thread
from streams.records import BadRecordError, BudgetEntry, PriceEntry, decode_catalog
from streams.stopping import stop_consumer

log = logging.getLogger(__name__)

_PARTITION = 0
_RETRY_S = 1.0
_LIMIT = "INSERT INTO budget_limits VALUES (%s, %s, %s, %s, %s) ON CONFLICT DO NOTHING"
_PRICE = "INSERT INTO prices VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING"
_DEAD_LETTER = (
    "INSERT INTO dead_letters VALUES (%s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING"
)
_CURSOR = """
INSERT INTO cursors (topic, partition, next_offset) VALUES (%s, %s, %s)
ON CONFLICT (topic, partition)
    DO UPDATE SET next_offset = GREATEST(cursors.next_offset, EXCLUDED.next_offset)
"""


async def follow_catalog(kafka: str, database_url: str, topic: str) -> None:
    """Copy the catalog's limits and prices into the ledger until cancelled."""
    while True:
        try:
            await _follow(kafka, database_url, topic)
        except Exception as error:
            if not (is_transient(error) or isinstance(error, KafkaError)):
                raise
            log.warning("catalog: trying again: %s", describe(error))
            await asyncio.sleep(_RETRY_S)


async def _follow(kafka: str, database_url: str, topic: str) -> None:
    place = TopicPartition(topic, _PARTITION)
    start = await run_in_thread(partial(_next_offset, database_url, topic))
    consumer = AIOKafkaConsumer(
        bootstrap_servers=kafka, enable_auto_commit=False, auto_offset_reset="earliest"
    )
    consumer.assign([place])
    try:
        await consumer.start()
        consumer.seek(place, start)
        while True:
            got = await consumer.getmany(timeout_ms=1_000)
            for messages in got.values():
                entries = [(m.key, Raw(m.offset, m.timestamp, m.value)) for m in messages]
                await run_in_thread(partial(write_catalog, database_url, topic, entries))
    finally:
        await stop_consumer(consumer)


def _next_offset(database_url: str, topic: str) -> int:
    with contextlib.closing(connect_sink(database_url)) as connection:
        row = connection.execute(
            "SELECT next_offset FROM cursors WHERE topic = %s AND partition = %s",
            [topic, _PARTITION],
        ).fetchone()
    return 0 if row is None else int(str(row[0]))


def write_catalog(
    database_url: str, topic: str, entries: Sequence[tuple[bytes | None, Raw]]
) -> None:
    """Write records of the catalog, given with their keys; repeating it has no effect."""
    connection = connect_sink(database_url)
    with contextlib.closing(connection), connection.transaction(), connection.cursor() as cursor:
        for key, raw in entries:
            _write_entry(cursor, topic, key, raw)
        cursor.execute(_CURSOR, [topic, _PARTITION, entries[-1][1].offset + 1])


def _write_entry(cursor: psycopg.Cursor[Row], topic: str, key: bytes | None, raw: Raw) -> None:
    if raw.value is None:
        kind, _, name = (key or b"").decode(errors="replace").replace("\0", "").partition(":")
        if kind == "budget":
            cursor.execute(_LIMIT, [name, raw.offset, None, "total", raw.at_ms])
        return
    try:
        entry = decode_catalog(raw.value)
    except BadRecordError as error:
        cursor.execute(_DEAD_LETTER, rows.dead_letter_row(topic, _PARTITION, raw, error))
        return
    if isinstance(entry, BudgetEntry):
        limit = (entry.budget, raw.offset, entry.limit_nanousd, entry.window, raw.at_ms)
        cursor.execute(_LIMIT, limit)
    elif isinstance(entry, PriceEntry):
        price = (entry.version, entry.input, entry.output, entry.cached)
        cursor.execute(_PRICE, (entry.arm, raw.offset, *price, raw.at_ms))
