"""Both servers together: started, stopped and looked at as one."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from streams.embedded.kafka import KafkaServer
from streams.embedded.postgres import PostgresServer
from streams.embedded.processes import locked

DATABASE = "tollway"


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoints:
    """Where the servers are: Kafka's bootstrap address and the database's SQLAlchemy URL."""

    kafka: str
    database_url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerStatus:
    """One server of the embedded stack; ``endpoint`` is that of the last start."""

    name: str
    running: bool
    pid: int | None
    endpoint: str | None


def up(folder: Path, *, kafka: str | None = None, database_url: str | None = None) -> Endpoints:
    """Start both servers unless they run; one whose endpoint is given is not started.

    Safe to repeat, also after any process, this one included, was killed at any point.
    """

    def start_postgres() -> str:
        server = PostgresServer(_postgres(folder))
        server.start()
        return server.create_database(DATABASE)

    with locked(folder / "stack.lock"), ThreadPoolExecutor(max_workers=1) as pool:
        starting = None if database_url else pool.submit(start_postgres)
        kafka = kafka or KafkaServer(_kafka(folder)).start()
        return Endpoints(
            kafka=kafka, database_url=starting.result() if starting else str(database_url)
        )


def down(folder: Path, *, wipe: bool = False) -> None:
    """Stop what runs of both servers; with ``wipe`` their data are deleted, too."""
    if not folder.exists():
        return
    with locked(folder / "stack.lock"):
        with ThreadPoolExecutor(max_workers=1) as pool:
            stopping = pool.submit(PostgresServer(_postgres(folder)).stop)
            KafkaServer(_kafka(folder)).stop()
            stopping.result()
        if wipe:
            # Only what the servers made: the folder itself may hold things of others.
            for data in (_kafka(folder), _postgres(folder)):
                if data.exists():
                    shutil.rmtree(data)


def status(folder: Path) -> tuple[ServerStatus, ServerStatus]:
    """Return how the embedded Kafka and Postgres stand; starts and changes nothing."""
    broker = KafkaServer(_kafka(folder))
    server = PostgresServer(_postgres(folder))
    broker_pid, server_pid = broker.pid, server.pid
    return (
        ServerStatus(
            name="kafka",
            running=broker_pid is not None,
            pid=broker_pid,
            endpoint=broker.known_bootstrap(),
        ),
        ServerStatus(
            name="postgres",
            running=server_pid is not None,
            pid=server_pid,
            endpoint=server.known_url(DATABASE),
        ),
    )


def running_endpoints(
    folder: Path, *, kafka: str | None = None, database_url: str | None = None
) -> Endpoints | None:
    """Return the endpoints of the running servers, or None if one that is needed does not run.

    A server whose endpoint is given is not needed.
    """
    broker, server = status(folder)
    kafka = kafka or (broker.endpoint if broker.running else None)
    database_url = database_url or (server.endpoint if server.running else None)
    if kafka is None or database_url is None:
        return None
    return Endpoints(kafka=kafka, database_url=database_url)


def _kafka(folder: Path) -> Path:
    return folder / "kafka"


def _postgres(folder: Path) -> Path:
    return folder / "postgres"
