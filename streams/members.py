"""Who is at work: the groups of workers and sinks, and how many requests wait for the former."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import GroupCoordinatorNotAvailableError, KafkaError
from aiokafka.structs import TopicPartition

from streams import topics

TIMEOUT_S = 5.0


class KafkaAwayError(Exception):
    """Kafka does not answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Members:
    """How many workers and sinks there are, and how many requests no worker is done with.

    ``waiting`` goes by what the workers have committed: once a checkpoint, about a second.
    """

    workers: int
    sinks: int
    waiting: int


async def find_members(kafka: str, *, app_id: str) -> Members:
    """Return who is at work for this deployment.

    Raises
    ------
    KafkaAwayError
        If Kafka does not answer within :data:`TIMEOUT_S`.
    """
    try:
        return await asyncio.wait_for(_find(kafka, app_id), TIMEOUT_S)
    except (KafkaError, TimeoutError) as exc:
        reason = str(exc) or f"no answer within {TIMEOUT_S:.0f} s"
        raise KafkaAwayError(f"Kafka at {kafka}: {reason}") from exc


async def _find(kafka: str, app_id: str) -> Members:
    consumer = AIOKafkaConsumer(bootstrap_servers=kafka)
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    try:
        await admin.start()
        await consumer.start()
        workers, sinks = [await _count(admin, name) for name in (app_id, f"{app_id}-ledger")]
        await consumer._client.force_metadata_update()
        partitions = [
            TopicPartition(topics.REQUESTS, number)
            for number in consumer.partitions_for_topic(topics.REQUESTS) or ()
        ]
        ends = await consumer.end_offsets(partitions) if partitions else {}
        done = await admin.list_consumer_group_offsets(app_id)
    finally:
        await consumer.stop()
        await admin.close()
    # Nothing committed yet: -1.
    at = {tp: max(done[tp].offset, 0) if tp in done else 0 for tp in partitions}
    waiting = sum(max(end - at[tp], 0) for tp, end in ends.items())
    return Members(workers=workers, sinks=sinks, waiting=waiting)


async def _count(admin: AIOKafkaAdminClient, group: str) -> int:
    """Return how many members a group has."""
    while True:
        try:
            responses: list[Any] = await admin.describe_consumer_groups([group])
        except GroupCoordinatorNotAvailableError:
            # A broker that never had a group makes their topic now.
            await asyncio.sleep(0.2)
            continue
        # Of a group: error, id, state, protocol type, protocol, members, more in newer versions.
        return sum(len(found[5]) for response in responses for found in response.groups)
