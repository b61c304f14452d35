"""What the pipeline is compared with: programs that only pass records on.

``python -m streams.bench.echo raw|group|stock|confluent KAFKA SOURCE TARGET`` reads one topic from
its beginning and writes every value to the other, until it is ended. ``group`` is ``raw`` in a
consumer group, which goes on where its last commit was; its session timeout in seconds follows.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
from typing import Any

from streams.publisher import make_producer


async def raw(kafka: str, source: str, target: str, session_s: str | None = None) -> None:
    """Pass records on as fast as aiokafka does: fetched batches out as record batches."""
    from aiokafka import AIOKafkaConsumer

    consumer = AIOKafkaConsumer(
        source,
        bootstrap_servers=kafka,
        group_id=f"group-{source}" if session_s else None,
        enable_auto_commit=session_s is not None,
        auto_commit_interval_ms=1_000,
        session_timeout_ms=1_000 * int(session_s or 6),
        heartbeat_interval_ms=500,
        auto_offset_reset="earliest",
        max_poll_records=2_000,
    )
    producer = make_producer(kafka)
    await consumer.start()
    await producer.start()
    pending: list[Any] = []
    while True:
        for tp, records in (await consumer.getmany(timeout_ms=200)).items():
            builder = producer.create_batch()
            for record in records:
                if builder.append(key=record.key, value=record.value, timestamp=None) is None:
                    builder.close()
                    pending.append(
                        await producer.send_batch(builder, target, partition=tp.partition)
                    )
                    builder = producer.create_batch()
                    builder.append(key=record.key, value=record.value, timestamp=None)
            builder.close()
            pending.append(await producer.send_batch(builder, target, partition=tp.partition))
        while len(pending) > 64:
            await pending.pop(0)


def stock(kafka: str, source: str, target: str) -> None:
    """Pass records on with a Faust agent as its documentation writes one."""
    import faust

    app = faust.App(
        f"stock-{source}",
        broker=f"kafka://{kafka}",
        topic_disable_leader=True,
        value_serializer="raw",
        consumer_auto_offset_reset="earliest",
        web_enabled=False,
        # Faust makes a folder for its tables, although this app has none.
        datadir=tempfile.mkdtemp(prefix="tollway-bench-stock-"),
    )
    records, echoes = app.topic(source), app.topic(target)

    @app.agent(records, name="bench.echo")
    async def echo(values: Any) -> None:
        async for value in values:
            await echoes.send(value=value)

    sys.argv = ["bench", "worker", "-l", "error", "--without-web"]
    app.main()


def confluent(kafka: str, source: str, target: str) -> None:
    """Pass records on with librdkafka, one ``produce`` for each."""
    from confluent_kafka import Consumer, Producer

    consumer = Consumer(
        {"bootstrap.servers": kafka, "group.id": f"confluent-{source}",
         "auto.offset.reset": "earliest", "enable.auto.commit": False}
    )  # fmt: skip
    producer = Producer(
        {"bootstrap.servers": kafka, "acks": "all", "enable.idempotence": True, "linger.ms": 2}
    )
    consumer.subscribe([source])
    while True:
        for message in consumer.consume(2_000, timeout=0.2):
            while True:
                try:
                    producer.produce(target, message.value(), key=message.key())
                    break
                except BufferError:
                    producer.poll(0.05)
        producer.poll(0)


def main() -> None:
    """Run the program that is named."""
    kind, *places = sys.argv[1:]
    with contextlib.suppress(KeyboardInterrupt):
        if kind in ("raw", "group"):
            asyncio.run(raw(*places))
        elif kind == "stock":
            stock(*places)
        else:
            confluent(*places)


if __name__ == "__main__":
    main()
