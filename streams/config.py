"""Settings of every command, read once at the start; nothing else reads the environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from streams.failpoints import Failpoint, parse

VARIABLES: Mapping[str, str] = {
    "TOLLWAY_HOME": "folder of the embedded servers; default ~/.local/share/tollway",
    "TOLLWAY_KAFKA": "Kafka bootstrap servers, host:port[,host:port]; default: the embedded broker",
    "TOLLWAY_DATABASE_URL": "Postgres URL, postgresql://…; default: the embedded server",
    "TOLLWAY_PARTITIONS": "partitions of the co-partitioned topics, 1 to 1000; default 8",
    "TOLLWAY_REPLICATION": "replication factor of topics that are created, 1 to 7; default 1",
    "TOLLWAY_APP_ID": "consumer group and prefix of the workers' table changelogs; default tollway",
    "TOLLWAY_SESSION_TIMEOUT_S": "seconds until a silent worker loses its partitions; default 6",
    "TOLLWAY_CHECKPOINT_MS": "how often dirty state is written to the tables; default 1000",
    "TOLLWAY_RESERVATION_TTL_S": "seconds until a reservation expires as spent; default 600",
    "TOLLWAY_DEFER_MS": "how long a request waits for its best arm and full cap; default 30000",
    "TOLLWAY_METRICS_PORT": "port of the worker's Prometheus page on 127.0.0.1; default 0: none",
    "TOLLWAY_HEADS_KEY": "file with the key that signs the ledger's heads, equal for all sinks; "
    "default: heads.key in TOLLWAY_HOME, made by the first sink",
    "TOLLWAY_ENCODERS": "folder of encoders of prompts, by version; default: encoders in "
    "TOLLWAY_HOME",
    "TOLLWAY_LOG_LEVEL": "debug, info, warning or error; default info",
    "TOLLWAY_FAILPOINT": "for tests: POINT:ACTION:COUNT, where to fail; default none",
}

LEVELS = ("debug", "info", "warning", "error")


class ConfigError(Exception):
    """A setting is missing or out of range; the message names it and shows the value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Settings of one process. ``kafka`` or ``database_url`` None means: the embedded server."""

    home: Path
    kafka: str | None = None
    database_url: str | None = None
    partitions: int = 8
    replication: int = 1
    app_id: str = "tollway"
    session_timeout_s: float = 6.0
    checkpoint_ms: int = 1_000
    reservation_ttl_ms: int = 600_000
    defer_ms: int = 30_000
    metrics_port: int = 0
    heads_key: Path | None = None
    encoders_folder: Path | None = None
    log_level: str = "info"
    failpoint: Failpoint | None = None

    @property
    def encoders(self) -> Path:
        """Where encoders lie that do not come with Tollway."""
        return self.encoders_folder or self.home / "encoders"

    def endpoints(self) -> tuple[str, str]:
        """Return Kafka's bootstrap servers and Postgres' URL, the embedded ones where not set.

        Raises
        ------
        ConfigError
            If a server is neither set nor running in :attr:`home`.
        """
        if self.kafka and self.database_url:
            return self.kafka, self.database_url
        from streams.embedded import running_endpoints

        embedded = running_endpoints(self.home, kafka=self.kafka, database_url=self.database_url)
        if embedded is None:
            raise ConfigError(
                "no servers: run `tollway up`, or set TOLLWAY_KAFKA and TOLLWAY_DATABASE_URL"
            )
        return self.kafka or embedded.kafka, self.database_url or embedded.database_url

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Config:
        """Read ``TOLLWAY_*``; refuse what is unknown or out of range.

        Raises
        ------
        ConfigError
            If a ``TOLLWAY_`` variable is none of :data:`VARIABLES`, or its value is not usable.
        """
        unknown = sorted(n for n in env if n.startswith("TOLLWAY_") and n not in VARIABLES)
        if unknown:
            known = ", ".join(name for name in VARIABLES if name != "TOLLWAY_FAILPOINT")
            raise ConfigError(
                f"unknown setting {unknown[0]} in the environment; unset or correct it; "
                f"known are {known}"
            )
        home = env.get("TOLLWAY_HOME") or str(_default_home(env))
        level = env.get("TOLLWAY_LOG_LEVEL", "info").lower()
        if level not in LEVELS:
            raise ConfigError(
                f"TOLLWAY_LOG_LEVEL must be one of {', '.join(LEVELS)}, got {level!r}"
            )
        return cls(
            home=Path(home).expanduser(),
            kafka=env.get("TOLLWAY_KAFKA") or None,
            database_url=env.get("TOLLWAY_DATABASE_URL") or None,
            partitions=_integer(env, "TOLLWAY_PARTITIONS", 8, 1, 1_000),
            replication=_integer(env, "TOLLWAY_REPLICATION", 1, 1, 7),
            app_id=env.get("TOLLWAY_APP_ID") or "tollway",
            session_timeout_s=_integer(env, "TOLLWAY_SESSION_TIMEOUT_S", 6, 1, 1_800),
            checkpoint_ms=_integer(env, "TOLLWAY_CHECKPOINT_MS", 1_000, 10, 60_000),
            reservation_ttl_ms=1_000 * _integer(env, "TOLLWAY_RESERVATION_TTL_S", 600, 1, 604_800),
            defer_ms=_integer(env, "TOLLWAY_DEFER_MS", 30_000, 0, 3_600_000),
            metrics_port=_integer(env, "TOLLWAY_METRICS_PORT", 0, 0, 65_535),
            heads_key=Path(env["TOLLWAY_HEADS_KEY"]) if env.get("TOLLWAY_HEADS_KEY") else None,
            encoders_folder=(
                Path(env["TOLLWAY_ENCODERS"]).expanduser() if env.get("TOLLWAY_ENCODERS") else None
            ),
            log_level=level,
            failpoint=_failpoint(env.get("TOLLWAY_FAILPOINT")),
        )


def _failpoint(text: str | None) -> Failpoint | None:
    try:
        return parse(text) if text else None
    except ValueError as exc:
        raise ConfigError(f"TOLLWAY_FAILPOINT: {exc}") from None


def _default_home(env: Mapping[str, str]) -> Path:
    data = env.get("XDG_DATA_HOME")
    return (Path(data) if data else Path("~/.local/share")) / "tollway"


def _integer(env: Mapping[str, str], name: str, default: int, low: int, high: int) -> int:
    text = env.get(name) or str(default)
    try:
        value = int(text)
    except ValueError:
        raise ConfigError(f"{name} must be a whole number, got {text!r}") from None
    if not low <= value <= high:
        raise ConfigError(f"{name} must be in [{low}, {high}], got {value}")
    return value
