"""The topics: created once, with stated settings, never with another count in silence."""

from __future__ import annotations

import asyncio

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from streams import topics
from tests.deployment import Deployment


@pytest.mark.kafka
@pytest.mark.postgres
async def test_creating_again_changes_nothing_and_another_count_is_refused(
    deployment: Deployment,
) -> None:
    kafka, count = deployment.kafka, deployment.partitions
    assert await topics.create(kafka, app_id="tollway", partitions=count) == []
    with pytest.raises(topics.TopicError, match=f"has {count} partitions, not {count + 1}"):
        await topics.create(kafka, app_id="tollway", partitions=count + 1)


@pytest.mark.kafka
@pytest.mark.postgres
async def test_the_broker_has_the_settings_that_the_laws_rest_on(deployment: Deployment) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=deployment.kafka)
    await admin.start()
    try:
        wanted = topics.wanted_topics("tollway")
        resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in wanted]
        answers = [await admin.describe_configs([resource]) for resource in resources]
    finally:
        await admin.close()
    found = {
        name: {entry[0]: entry[1] for entry in answer[0].resources[0][4]}
        for name, answer in zip(wanted, answers, strict=True)
    }
    for name, settings in wanted.items():
        for key, value in settings.config().items():
            assert found[name][key] == value, (name, key)
    for name in topics.TOPICS:
        assert found[name]["message.timestamp.type"] == "LogAppendTime"


@pytest.mark.kafka
@pytest.mark.postgres
async def test_kafkas_partitioner_and_ours_agree(deployment: Deployment) -> None:
    keys = [f"root-{n}".encode() for n in range(20)]
    async with AIOKafkaProducer(bootstrap_servers=deployment.kafka) as producer:
        partitions = await asyncio.to_thread(
            lambda: [
                producer._partitioner(key, list(range(deployment.partitions)), [0]) for key in keys
            ]
        )
    assert [topics.home_partition(key, deployment.partitions) for key in keys] == partitions


def test_replaying_reaches_as_far_as_the_requests() -> None:
    kept = topics.TOPICS
    for name in (topics.DECISIONS, topics.OUTCOMES):
        assert kept[name].retention_ms >= kept[topics.REQUESTS].retention_ms
    assert {name for name, t in kept.items() if t.partitions is None} == {
        topics.REQUESTS, topics.DECISIONS, topics.OUTCOMES, topics.DEAD_LETTERS,
    }  # fmt: skip
    assert topics.changelog("app", "t") == "app-t-changelog"
