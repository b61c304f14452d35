"""A real Kafka and a real Postgres from packages, for one machine without servers of its own."""

from streams.embedded.errors import EmbeddedError, MissingExtraError, ServerStartError
from streams.embedded.kafka import KafkaServer
from streams.embedded.postgres import PostgresServer
from streams.embedded.stack import (
    DATABASE,
    Endpoints,
    ServerStatus,
    down,
    running_endpoints,
    status,
    up,
)

__all__ = [
    "DATABASE",
    "EmbeddedError",
    "Endpoints",
    "KafkaServer",
    "MissingExtraError",
    "PostgresServer",
    "ServerStartError",
    "ServerStatus",
    "down",
    "running_endpoints",
    "status",
    "up",
]
