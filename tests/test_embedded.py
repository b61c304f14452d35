"""The embedded stack: idempotent, durable, and whole again after any kill."""

from __future__ import annotations

import psycopg
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic


@pytest.mark.kafka
def test_the_session_broker_takes_a_durable_record(kafka, topic_prefix):
    admin = AdminClient({"bootstrap.servers": kafka})
    admin.create_topics([NewTopic(topic_prefix, 1)])[topic_prefix].result(10)
    errors = []
    producer = Producer({"bootstrap.servers": kafka, "acks": "all", "enable.idempotence": True})
    producer.produce(topic_prefix, b"hello", on_delivery=lambda error, _: errors.append(error))
    assert producer.flush(10) == 0
    assert errors == [None]


@pytest.mark.postgres
def test_each_test_gets_an_empty_database_with_fsync(database_url):
    with psycopg.connect(database_url.replace("+psycopg", "")) as connection:
        tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
        assert connection.execute(tables).fetchone() == (0,)
        assert connection.execute("SHOW fsync").fetchone() == ("on",)
        assert connection.execute("SHOW server_version_num").fetchone()[0].startswith("18")
