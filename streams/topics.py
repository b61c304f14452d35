"""The topics: their names, their settings, and creating them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import for_code
from aiokafka.partitioner import murmur2

REQUESTS = "tollway.requests.v1"
DECISIONS = "tollway.decisions.v1"
OUTCOMES = "tollway.outcomes.v1"
CATALOG = "tollway.catalog.v1"
STATISTICS = "tollway.statistics.v1"
DEAD_LETTERS = "tollway.dead-letters.v1"
LEDGER_HEADS = "tollway.ledger-heads.v1"

_DAY_MS = 86_400_000
_TOPIC_ALREADY_EXISTS = 36


class TopicError(Exception):
    """A topic is missing or differs from what it must be; the message names both."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicSettings:
    """What a topic is created with; ``retention_ms`` is how long its records can be replayed."""

    cleanup: str
    retention_ms: int
    partitions: int | None = None
    extra: Mapping[str, str] = field(default_factory=dict)

    def config(self) -> dict[str, str]:
        """Return the broker's topic configuration."""
        return {
            "cleanup.policy": self.cleanup,
            "retention.ms": str(self.retention_ms),
            # Expiry, windows and late outcomes are judged by these times, which no producer sets.
            "message.timestamp.type": "LogAppendTime",
            **self.extra,
        }


TOPICS: Mapping[str, TopicSettings] = {
    REQUESTS: TopicSettings(cleanup="delete", retention_ms=7 * _DAY_MS),
    DECISIONS: TopicSettings(cleanup="delete", retention_ms=7 * _DAY_MS),
    OUTCOMES: TopicSettings(cleanup="delete", retention_ms=7 * _DAY_MS),
    # History is kept as long as the requests', so that a replay finds the catalog of its day.
    CATALOG: TopicSettings(
        cleanup="compact",
        retention_ms=-1,
        partitions=1,
        extra={"min.compaction.lag.ms": str(7 * _DAY_MS)},
    ),
    # The last of each partition and arm is kept for ever: who starts must learn what others know.
    STATISTICS: TopicSettings(
        cleanup="compact",
        retention_ms=-1,
        partitions=1,
        extra={"min.compaction.lag.ms": str(_DAY_MS)},
    ),
    DEAD_LETTERS: TopicSettings(cleanup="delete", retention_ms=30 * _DAY_MS),
    # Kept for ever: an old head is what a ledger that was rewritten contradicts.
    LEDGER_HEADS: TopicSettings(cleanup="delete", retention_ms=-1, partitions=1),
}
"""Topics without ``partitions`` are co-partitioned: all have the configured count."""


TABLES = ("budget-pacing", "reward-windows", "arm-statistics", "reservations")
"""The workers' tables; each has a changelog, co-partitioned with the requests."""


def changelog(app_id: str, table: str) -> str:
    """Return the name that Faust gives to a table's changelog."""
    return f"{app_id}-{table}-changelog"


def wanted_topics(app_id: str) -> dict[str, TopicSettings]:
    """Return every topic of a deployment: the fixed ones and the changelogs of its workers."""
    changelogs = {
        changelog(app_id, table): TopicSettings(
            cleanup="compact",
            retention_ms=-1,
            # Values are overwritten once a second: compact early, or a restart reads them all.
            extra={
                "min.cleanable.dirty.ratio": "0.1",
                "segment.ms": "600000",
                "max.compaction.lag.ms": "3600000",
            },
        )
        for table in TABLES
    }
    return {**TOPICS, **changelogs}


@lru_cache(maxsize=65_536)
def home_partition(key: bytes, partitions: int) -> int:
    """Return the partition that Kafka's default partitioner gives a key.

    Examples
    --------
    >>> home_partition(b"acme", 8)
    4
    """
    return int((murmur2(key) & 0x7FFFFFFF) % partitions)


async def create(kafka: str, *, app_id: str, partitions: int, replication: int = 1) -> list[str]:
    """Create the topics that are missing and return their names; repeating it is safe.

    Raises
    ------
    TopicError
        If a topic exists with another number of partitions: its keys would lie elsewhere.
    """
    wanted_all = wanted_topics(app_id)
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    try:
        existing = set(await admin.list_topics())
        missing = [name for name in wanted_all if name not in existing]
        wanted = [
            NewTopic(
                name,
                num_partitions=wanted_all[name].partitions or partitions,
                replication_factor=replication,
                topic_configs=wanted_all[name].config(),
            )
            for name in missing
        ]
        if wanted:
            response = await admin.create_topics(wanted)
            for name, code, *message in response.topic_errors:
                if code not in (0, _TOPIC_ALREADY_EXISTS):
                    raise TopicError(f"cannot create {name}: {for_code(code).__name__} {message}")
        found = await admin.describe_topics(list(wanted_all))
    finally:
        await admin.close()
    _check(found, wanted_all, partitions)
    return missing


def _check(
    found: list[dict[str, object]], settings: Mapping[str, TopicSettings], partitions: int
) -> None:
    for topic in found:
        name, parts = str(topic["topic"]), topic["partitions"]
        assert isinstance(parts, list)
        wanted = settings[name].partitions or partitions
        if topic["error_code"] == 0 and len(parts) != wanted:
            raise TopicError(
                f"topic {name} has {len(parts)} partitions, not {wanted}: changing the count "
                "moves budgets to other partitions; create a new deployment instead"
            )
