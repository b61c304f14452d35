"""The servers and processes of a demo: a folder of its own, or the servers that are given."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psycopg

from streams import embedded, topics
from streams.config import Config
from streams.ledger.database import connection_string
from streams.ledger.migrate import upgrade
from streams.log import LogReader

SESSION_S = 4
"""Seconds until a killed worker's partitions are given to others, on the demo's own broker."""


class DemoError(Exception):
    """The demo cannot run; the message says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Where the demo plays."""

    home: Path
    config: Config
    kafka: str
    database_url: str

    def settings(self, *, expire_s: int, defer_ms: int) -> Mapping[str, str]:
        """Return the settings of workers and sink."""
        config = self.config
        # A broker of the user's own may refuse sessions as short as this.
        session_s = int(config.session_timeout_s) if config.kafka else SESSION_S
        return {
            "TOLLWAY_HOME": str(self.home),
            "TOLLWAY_KAFKA": self.kafka,
            "TOLLWAY_DATABASE_URL": self.database_url,
            "TOLLWAY_PARTITIONS": str(config.partitions),
            "TOLLWAY_REPLICATION": str(config.replication),
            "TOLLWAY_APP_ID": config.app_id,
            "TOLLWAY_SESSION_TIMEOUT_S": str(session_s),
            "TOLLWAY_RESERVATION_TTL_S": str(expire_s),
            "TOLLWAY_DEFER_MS": str(defer_ms),
            "TOLLWAY_METRICS_PORT": "0",
            "TOLLWAY_LOG_LEVEL": config.log_level,
            **{
                name: "1" for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
            },
        }


def home_of(config: Config) -> Path:
    """Return the demo's own folder."""
    return config.home / "demo"


async def prepare(config: Config) -> Stage:
    """Start empty servers where none are given, and make topics and tables.

    Raises
    ------
    DemoError
        If a server that was given holds records of something else: workers read whole topics.
    """
    home = home_of(config)
    await asyncio.to_thread(_wipe, home)
    home.mkdir(parents=True, exist_ok=True)
    endpoints = await asyncio.to_thread(
        embedded.up, home, kafka=config.kafka, database_url=config.database_url
    )
    migrating = asyncio.to_thread(upgrade, endpoints.database_url)
    creating = topics.create(
        endpoints.kafka,
        app_id=config.app_id,
        partitions=config.partitions,
        replication=config.replication,
    )
    await asyncio.gather(migrating, creating)
    await _require_empty(endpoints)
    return Stage(
        home=home, config=config, kafka=endpoints.kafka, database_url=endpoints.database_url
    )


async def close(home: Path) -> None:
    """Stop the demo's own servers; their data stay until the next run."""
    await asyncio.to_thread(embedded.down, home)


def _wipe(home: Path) -> None:
    embedded.down(home, wipe=True)
    shutil.rmtree(home / "logs", ignore_errors=True)


async def _require_empty(endpoints: embedded.Endpoints) -> None:
    reader = LogReader(endpoints.kafka)
    await reader.start()
    try:
        for topic in topics.TOPICS:
            for partition in await reader.partitions(topic):
                if (await reader.bounds(topic, partition))[1]:
                    raise DemoError(
                        f"topic {topic} has been used: the demo needs topics of its own; unset "
                        "TOLLWAY_KAFKA and TOLLWAY_DATABASE_URL, and it starts its own servers"
                    )
    finally:
        await reader.stop()
    if await asyncio.to_thread(_has_books, endpoints.database_url):
        raise DemoError("the ledger holds entries already: the demo needs a database of its own")


def _has_books(database_url: str) -> bool:
    with psycopg.connect(connection_string(database_url)) as connection:
        row = connection.execute("SELECT EXISTS (SELECT FROM cursors)").fetchone()
    return bool(row and row[0])
