"""Follows the compacted topics that every worker must know: the catalog and the statistics."""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from policy.catalog import BudgetSpec, Catalog
from policy.money import Price
from policy.registry import make_policy
from policy.segment_features import features_name
from policy.terms import Arm, PolicyError, Settings
from streams import topics
from streams.records import (
    ArmEntry,
    BadRecordError,
    BudgetEntry,
    CatalogEntry,
    PriceEntry,
    Statistics,
    decode,
    decode_catalog,
)
from streams.stopping import stop_consumer

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Gathered:
    """What is taken into the catalog once for many entries: each time would be a copy of it.

    ``budgets`` is None for those that are removed, ``offset`` that of the next entry.
    """

    budgets: dict[str, BudgetSpec | None] = field(default_factory=dict)
    offset: int | None = None


class PolicyChangedError(Exception):
    """The catalog names another policy; a worker takes it up when it starts anew."""

    exit_code = 70
    """As where another worker took over: whoever supervises the process starts it again."""

    def __init__(self, settings: str) -> None:
        super().__init__(f"the catalog's policy has changed, starting anew: {settings}")


def apply_entry(catalog: Catalog, entry: CatalogEntry) -> Catalog:
    """Return the catalog after one entry.

    Raises
    ------
    BadRecordError
        If the entry contradicts itself, such as a price of zero.
    """
    if isinstance(entry, ArmEntry):
        return catalog.with_arm(
            Arm(
                arm=entry.arm,
                price=None,
                deployed=entry.deployed,
                capabilities=frozenset(entry.capabilities),
                context_tokens_max=entry.context_tokens_max,
                prior_reward=entry.prior_reward,
                prior_output_tokens=entry.prior_output_tokens,
                explore=entry.explore,
            )
        )
    if isinstance(entry, PriceEntry):
        try:
            price = Price(
                version=entry.version, input=entry.input, output=entry.output, cached=entry.cached
            )
        except ValueError as exc:
            raise BadRecordError("price", str(exc)) from None
        return catalog.with_price(entry.arm, price)
    if isinstance(entry, BudgetEntry):
        return catalog.with_budget(_budget_of(entry))
    settings = Settings(
        policy=entry.policy,
        dimensions=entry.dimensions,
        seed=entry.seed,
        options=entry.options,
        segments=tuple(dict.fromkeys(entry.segments)),
        segment_weight=entry.segment_weight,
    )
    encoder = "" if entry.encoder in ("none", "lexical") else entry.encoder
    settings = replace(
        settings,
        dimensions=entry.dimensions + settings.segment_columns,
        features=features_name(encoder, settings),
    )
    try:
        make_policy(settings)
    except (PolicyError, ValueError) as exc:
        raise BadRecordError("policy", str(exc)) from None
    return Catalog(
        arms=catalog.arms,
        budgets=catalog.budgets,
        settings=settings,
        encoder=entry.encoder,
        offset=catalog.offset,
    )


def _budget_of(entry: BudgetEntry) -> BudgetSpec:
    return BudgetSpec(
        budget=entry.budget,
        limit_nanousd=entry.limit_nanousd,
        window=entry.window,
        per_request_nanousd=entry.per_request_nanousd,
        paced=entry.pacing != "none",
        controller="pid" if entry.pacing == "pid" else "curve",
    )


def remove_entry(catalog: Catalog, key: bytes) -> Catalog:
    """Return the catalog after a tombstone: an arm retires, a price or a budget is gone."""
    kind, name = _key_parts(key)
    if kind == "arm":
        return catalog.without_arm(name)
    if kind == "price" and any(arm.arm == name for arm in catalog.arms):
        return catalog.with_price(name, None)
    return catalog.without_budget(name) if kind == "budget" else catalog


def _key_parts(key: bytes | None) -> tuple[str, str]:
    kind, _, name = (key or b"").decode(errors="replace").partition(":")
    return kind, name


def entry_key(entry: CatalogEntry) -> bytes:
    """Return the key under which an entry replaces its former version."""
    if isinstance(entry, ArmEntry):
        return f"arm:{entry.arm}".encode()
    if isinstance(entry, PriceEntry):
        return f"price:{entry.arm}".encode()
    return f"budget:{entry.budget}".encode() if isinstance(entry, BudgetEntry) else b"policy"


@dataclass(slots=True)
class Learned:
    """A statistics record with its offset."""

    offset: int
    record: Statistics
    state: bytes
    """What was learned, decoded once for all partitions of the worker."""


class Follower:
    """Reads both topics to their ends, then goes on; every worker has one.

    ``catalog`` is the newest; ``learned`` keeps the newest record of each partition and arm.
    ``refused`` holds the catalog's records that cannot be read, by offset: the catalog stayed as
    it was.
    """

    def __init__(self, kafka: str) -> None:
        self.catalog = Catalog()
        self.learned: dict[tuple[int, str], Learned] = {}
        self.statistics_offset = 0
        self.refused: dict[int, tuple[Any, BadRecordError]] = {}
        self._topics = {
            name: TopicPartition(name, 0) for name in (topics.CATALOG, topics.STATISTICS)
        }
        self._consumer = AIOKafkaConsumer(
            bootstrap_servers=kafka,
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=100,
        )

    async def start(self) -> None:
        """Connect, and read everything that is there now."""
        await self._consumer.start()
        partitions = list(self._topics.values())
        self._consumer.assign(partitions)
        await self._consumer.seek_to_beginning(*partitions)
        ends = await self._consumer.end_offsets(partitions)
        gathered = Gathered()
        while any([await self._consumer.position(tp) < ends[tp] for tp in partitions]):
            for tp, records in (await self._consumer.getmany(timeout_ms=200)).items():
                self._read(tp.topic, records, gathered)
        self._take(gathered)

    async def stop(self) -> None:
        """Disconnect."""
        await stop_consumer(self._consumer)

    async def run(self) -> None:
        """Follow until cancelled."""
        while True:
            await self.step()
            await asyncio.sleep(0)

    async def step(self) -> None:
        """Apply what one fetch brings."""
        for tp, records in (await self._consumer.getmany(timeout_ms=200)).items():
            self._apply(tp.topic, *records)

    def _apply(self, topic: str, *records: Any) -> None:
        gathered = Gathered()
        self._read(topic, records, gathered)
        self._take(gathered)

    def _read(self, topic: str, records: Sequence[Any], gathered: Gathered) -> None:
        for record in records:
            try:
                if topic == topics.CATALOG:
                    self._read_entry(record, gathered)
                else:
                    self._read_statistics(record)
            except BadRecordError as exc:
                logger.error("%s/0/%s refused: %s", topic, record.offset, exc)  # noqa: TRY400
                if topic == topics.CATALOG:
                    self.refused[record.offset] = (record, exc)

    def _read_statistics(self, record: Any) -> None:
        statistics = decode(Statistics, record.value)
        learned = Learned(record.offset, statistics, base64.b64decode(statistics.state_b64))
        self.learned[statistics.partition, statistics.arm] = learned
        self.statistics_offset = record.offset + 1

    def _read_entry(self, record: Any, gathered: Gathered) -> None:
        entry = None if record.value is None else decode_catalog(record.value)
        if isinstance(entry, BudgetEntry):
            gathered.budgets[entry.budget] = _budget_of(entry)
        elif entry is not None:
            self.catalog = apply_entry(self.catalog, entry)
        else:
            kind, name = _key_parts(record.key)
            if kind == "budget":
                gathered.budgets[name] = None
            else:
                self.catalog = remove_entry(self.catalog, record.key or b"")
        gathered.offset = record.offset + 1

    def _take(self, gathered: Gathered) -> None:
        catalog = self.catalog
        if gathered.budgets:
            catalog = catalog.with_budgets(gathered.budgets)
        if gathered.offset is not None:
            self.catalog = replace(catalog, offset=gathered.offset)
