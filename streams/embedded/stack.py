"""Both servers together: started, stopped and looked at as one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from streams.embedded.kafka import KafkaServer
from streams.embedded.postgres import PostgresServer

DATABASE = "tollway"


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoints:
    """Where the servers are: Kafka's bootstrap address and the database's SQLAlchemy URL."""

    kafka: str
    database_url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerStatus:
    """One server: not ours (``embedded`` is false), or ours and running or not."""

    name: str
    embedded: bool
    running: bool
    pid: int | None
    endpoint: str | None


def up(folder: Path, *, kafka: str | None = None, database_url: str | None = None) -> Endpoints:
    """Start both servers unless they run; one whose endpoint is given is left alone.

    Safe to repeat, also after any process, this one included, was killed at any point.
    """

    def start_kafka() -> str:
        return kafka or KafkaServer(folder / "kafka").start()

    def start_postgres() -> str:
        if database_url:
            return database_url
        server = PostgresServer(folder / "postgres")
        server.start()
        return server.create_database(DATABASE)

    with ThreadPoolExecutor(max_workers=2) as pool:
        first, second = pool.submit(start_kafka), pool.submit(start_postgres)
        return Endpoints(kafka=first.result(), database_url=second.result())


def down(folder: Path) -> None:
    """Stop what runs of both servers; the data stay."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        first = pool.submit(KafkaServer(folder / "kafka").stop)
        second = pool.submit(PostgresServer(folder / "postgres").stop)
        first.result()
        second.result()


def status(
    folder: Path, *, kafka: str | None = None, database_url: str | None = None
) -> tuple[ServerStatus, ServerStatus]:
    """Return how Kafka and Postgres stand, without starting or changing anything."""
    broker = KafkaServer(folder / "kafka")
    server = PostgresServer(folder / "postgres")
    broker_pid, server_pid = broker.pid, server.pid
    return (
        ServerStatus(
            name="kafka",
            embedded=kafka is None,
            running=broker_pid is not None,
            pid=broker_pid,
            endpoint=kafka or broker.bootstrap,
        ),
        ServerStatus(
            name="postgres",
            embedded=database_url is None,
            running=server_pid is not None,
            pid=server_pid,
            endpoint=database_url or server.known_url(DATABASE),
        ),
    )
