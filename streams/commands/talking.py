"""What the commands that talk to Kafka share: errors in words, and looking before sending."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from aiokafka.errors import KafkaError

from streams import topics
from streams.commands.common import fail
from streams.log import LogError, LogReader

Json = Annotated[bool, typer.Option("--json", help="Print JSON, an object a line.")]


@contextmanager
def quiet_client() -> Iterator[None]:
    """Keep the client from logging what it then raises, a line for each attempt."""
    client = logging.getLogger("aiokafka")
    level = client.level
    client.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        client.setLevel(level)


@contextmanager
def errors_told(kafka: str) -> Iterator[None]:
    """Turn what a user can do something about into a message and exit code 2."""
    with quiet_client():
        try:
            yield
        except LogError as exc:
            fail(f"{exc}; `tollway topics` creates what is missing")
        except KafkaError as exc:
            fail(f"Kafka at {kafka} cannot be used: {exc}")


async def need_topics(kafka: str) -> None:
    """Raise :class:`LogError` if a topic is missing, at once: a producer would wait for it."""
    reader = LogReader(kafka)
    await reader.start()
    try:
        for name in topics.TOPICS:
            await reader.partitions(name)
    finally:
        await reader.stop()
