"""Servers for the tests: real ones, started when the first test asks, ended with the session."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from streams.embedded import KafkaServer, PostgresServer
from tests.deployment import Deployment


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--update-golden``, which rewrites tests/golden instead of comparing with it."""
    parser.addoption("--update-golden", action="store_true")


def pytest_configure(config: pytest.Config) -> None:
    """End in good order also when the session is asked to end from outside."""
    signal.signal(signal.SIGTERM, lambda *_: pytest.exit("terminated", returncode=143))


@pytest.fixture(scope="session")
def servers_root() -> Iterator[Path]:
    """Return the folder for servers: ``kafka-*`` and ``postgres-*`` in it end with the session.

    It lies outside pytest's own temporary folders, which every new session closes again to
    other users: run by root, Postgres is such a user.
    """
    root = Path(tempfile.mkdtemp(prefix="tollway-tests-"))
    guard = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("guard.py")), str(root)],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    assert guard.stdin is not None
    try:
        yield root
    finally:
        guard.stdin.close()
        assert guard.wait(timeout=60) == 0


@pytest.fixture(scope="session")
def kafka(servers_root: Path) -> str:
    """Return the bootstrap address of the session's broker."""
    return KafkaServer(servers_root / "kafka-session").start()


@pytest.fixture(scope="session")
def _fault_broker(servers_root: Path) -> KafkaServer:
    return KafkaServer(servers_root / "kafka-faults")


@pytest.fixture
def kafka_server(_fault_broker: KafkaServer) -> KafkaServer:
    """Return a running broker apart from the session's, to kill, stop and start at will."""
    _fault_broker.start()
    return _fault_broker


@pytest.fixture(scope="session")
def _session_postgres(servers_root: Path) -> PostgresServer:
    server = PostgresServer(servers_root / "postgres-session")
    server.start()
    return server


@pytest.fixture(scope="session")
def postgres(_session_postgres: PostgresServer) -> str:
    """Return the URL of the session's server."""
    return _session_postgres.url()


@pytest.fixture(scope="session")
def _fault_postgres(servers_root: Path) -> PostgresServer:
    return PostgresServer(servers_root / "postgres-faults")


@pytest.fixture
def postgres_server(_fault_postgres: PostgresServer) -> PostgresServer:
    """Return a running server apart from the session's, to stop and start at will."""
    _fault_postgres.start()
    return _fault_postgres


@pytest.fixture
def database_url(_session_postgres: PostgresServer) -> Iterator[str]:
    """Return the SQLAlchemy URL of an empty database that only this test knows."""
    name = f"test_{uuid.uuid4().hex}"
    yield _session_postgres.create_database(name)
    _session_postgres.drop_database(name)


@pytest.fixture
def topic_prefix(request: pytest.FixtureRequest) -> str:
    """Return a name of this test alone, good for topics, groups and application ids."""
    test = re.sub(r"[^A-Za-z0-9]+", "-", request.node.name).strip("-")[:40]
    return f"{test}-{uuid.uuid4().hex[:8]}"


@pytest.fixture(scope="session")
def deployment(
    kafka: str, _session_postgres: PostgresServer, servers_root: Path
) -> Iterator[Deployment]:
    """Return the session's deployment, with one worker and one sink; use roots of your own."""
    url = _session_postgres.create_database("deployment")
    result = Deployment(kafka, url, servers_root / "deployment")
    asyncio.run(result.create())
    result.start_worker()
    result.start_sink()
    try:
        asyncio.run(result.settled(timeout_s=120.0))
        yield result
    finally:
        result.close()
