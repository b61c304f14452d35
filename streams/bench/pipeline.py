"""Requests to decisions per second of one worker, beside programs that only pass records on.

Each program finds a backlog on the broker and is timed by the end offsets of the topic it writes,
between the tenth and the ninth tenth of the backlog; its start is not counted.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from streams import topics
from streams.bench.echo import SOURCE, TARGET
from streams.bench.figures import table
from streams.client import Client, root_of
from streams.log import LogReader
from streams.publisher import Outbox, make_producer
from streams.records import (
    ArmEntry,
    BudgetEntry,
    CatalogEntry,
    PolicyEntry,
    PriceEntry,
    Request,
    encode,
)

STOCK_SHARE = 0.1
"""Stock Faust gets so much of the backlog: it would take a minute otherwise."""
_DEADLINE_S = 180.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What is measured: sizes of the catalog, of the requests and of the run."""

    arms: int = 10
    features: int = 26
    budgets: int = 64
    partitions: int = 8
    requests: int = 60_000
    rounds: int = 3


Say = Callable[[str], None]


async def measure(kafka: str, home: Path, shape: Shape, *, say: Say) -> dict[str, Any]:
    """Return decisions/s, the rates of the others, and ratios; median and spread of the rounds."""
    await topics.create(kafka, app_id="tollway", partitions=shape.partitions)
    await _create_echo_topics(kafka, shape.partitions)
    async with Client(kafka) as client:
        await client.declare(_catalog(shape))
    rates: dict[str, list[float]] = {"decisions": [], "raw_echo": [], "stock_faust": []}
    cpu: list[float] = []
    async with _Reader(kafka, shape.partitions) as reader:
        for number in range(shape.rounds):
            values = _requests(shape, number)
            say(f"round {number + 1} of {shape.rounds}: {len(values):,} requests")
            await _produce(kafka, SOURCE, values, shape.partitions)
            command = [sys.executable, "-m", "streams.bench.echo"]
            rate, _ = await _time(reader, TARGET, len(values), [*command, "raw", kafka], os.environ)
            rates["raw_echo"].append(rate)
            await _create_echo_topics(kafka, shape.partitions, anew=True)
            few = values[: int(len(values) * STOCK_SHARE)]
            await _produce(kafka, SOURCE, few, shape.partitions)
            rate, _ = await _time(reader, TARGET, len(few), [*command, "stock", kafka], os.environ)
            rates["stock_faust"].append(rate)
            await _create_echo_topics(kafka, shape.partitions, anew=True)
            await _produce(kafka, topics.REQUESTS, values, shape.partitions)
            rate, seconds = await _time(
                reader,
                topics.DECISIONS,
                len(values),
                [sys.executable, "-m", "streams", "worker"],
                {
                    **os.environ,
                    "TOLLWAY_KAFKA": kafka,
                    "TOLLWAY_DATABASE_URL": "postgresql://unused",
                    "TOLLWAY_PARTITIONS": str(shape.partitions),
                    "TOLLWAY_HOME": str(home),
                    "TOLLWAY_LOG_LEVEL": "warning",
                },
            )
            rates["decisions"].append(rate)
            cpu.append(seconds / len(values) * 1e6)
            say("  " + ", ".join(f"{name} {r[-1]:,.0f}/s" for name, r in rates.items()))
    return summarise(rates, cpu, shape)


def summarise(rates: dict[str, list[float]], cpu: Sequence[float], shape: Shape) -> dict[str, Any]:
    """Return the medians, spreads and ratios; a ratio compares the rates of the same round."""
    ratios = {
        name: statistics.median(
            mine / other for mine, other in zip(rates["decisions"], rates[name], strict=True)
        )
        for name in rates
        if name != "decisions"
    }
    return {
        "decisions_per_s": round(statistics.median(rates["decisions"])),
        "ratios": {name: round(ratio, 3) for name, ratio in ratios.items()},
        "per_s": {
            name: {
                "median": round(statistics.median(r)), "min": round(min(r)), "max": round(max(r))
            }
            for name, r in rates.items()
        },
        "worker_cpu_s_per_million": round(statistics.median(cpu), 1),
        "shape": {name: getattr(shape, name) for name in shape.__dataclass_fields__},
    }  # fmt: skip


def _catalog(shape: Shape) -> list[CatalogEntry]:
    entries: list[CatalogEntry] = [PolicyEntry(dimensions=shape.features, encoder="none")]
    for number in range(shape.arms):
        arm, price = f"model-{number}@bench", 50_000 * 2**number
        entries.append(ArmEntry(arm=arm, prior_output_tokens=150))
        entries.append(PriceEntry(arm=arm, version=1, input=price, output=4 * price))
    entries.extend(BudgetEntry(budget=b, limit_nanousd=10**15) for b in _budgets(shape))
    roots = sorted({budget.partition("/")[0] for budget in _budgets(shape)})
    return [*entries, *(BudgetEntry(budget=root, limit_nanousd=10**17) for root in roots)]


def _budgets(shape: Shape) -> list[str]:
    roots = min(shape.budgets, 4 * shape.partitions)
    return [f"root-{number % roots}/key-{number}" for number in range(shape.budgets)]


def _requests(shape: Shape, number: int) -> list[tuple[bytes, bytes]]:
    rng = np.random.default_rng([3000, number])
    features = rng.normal(size=(shape.requests, shape.features)).round(4).tolist()
    tokens = rng.integers(20, 2_000, shape.requests).tolist()
    budgets = _budgets(shape)
    values = []
    for row in range(shape.requests):
        budget = budgets[row % len(budgets)]
        request = Request(
            request_id=f"bench-{number}-{row}", budget=budget, input_tokens=tokens[row],
            max_output_tokens=1_024, features=features[row],
        )  # fmt: skip
        values.append((root_of(budget), encode(request)))
    return values


async def _create_echo_topics(kafka: str, partitions: int, *, anew: bool = False) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    try:
        if anew:
            await admin.delete_topics([SOURCE, TARGET])
        names = {SOURCE, TARGET}
        while anew and names & set(await admin.list_topics()):
            await asyncio.sleep(0.1)
        await admin.create_topics(
            [NewTopic(name, num_partitions=partitions, replication_factor=1) for name in names]
        )
    finally:
        await admin.close()


async def _produce(
    kafka: str, topic: str, values: Sequence[tuple[bytes, bytes]], partitions: int
) -> None:
    """Write the backlog, by the partition that the key's hash gives."""
    by_partition: dict[int, list[tuple[bytes, bytes]]] = {}
    for key, value in values:
        by_partition.setdefault(topics.home_partition(key, partitions), []).append((key, value))
    producer = make_producer(kafka)
    await producer.start()
    try:
        for number, part in by_partition.items():
            outbox = Outbox(producer, topic, number)
            await outbox.send(None, [v for _, v in part], keys=[k for k, _ in part])
            await outbox.flush()
    finally:
        await producer.stop()


class _Reader:
    """Tells how many records a topic holds."""

    def __init__(self, kafka: str, partitions: int) -> None:
        self._reader, self._partitions = LogReader(kafka), partitions

    async def __aenter__(self) -> _Reader:
        await self._reader.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._reader.stop()

    async def count(self, topic: str) -> int:
        return await self._reader.count(topic, range(self._partitions))


async def _time(
    reader: _Reader, topic: str, records: int, command: Sequence[str], env: Any
) -> tuple[float, float]:
    """Run a program until it has written ``records``; return records/s and its CPU seconds."""
    before = await reader.count(topic)
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, env={**env, "OPENBLAS_NUM_THREADS": "1"}, stdout=log, stderr=log
        )
        try:
            low, high = int(0.1 * records), int(0.9 * records)
            begun = ended = None
            deadline = time.monotonic() + _DEADLINE_S
            while ended is None:
                done, now = await reader.count(topic) - before, time.monotonic()
                if done >= low and begun is None:
                    begun = (done, now)
                if done >= high:
                    ended = (done, now)
                if process.poll() is not None or now > deadline:
                    log.seek(0)
                    raise RuntimeError(
                        f"{' '.join(command)} wrote {done} of {records} records:\n"
                        f"{log.read().decode(errors='replace')[-2000:]}"
                    )
                await asyncio.sleep(0.02)
            while await reader.count(topic) - before < records and time.monotonic() < deadline:
                await asyncio.sleep(0.05)
            cpu = _cpu_seconds(process.pid)
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    assert begun is not None
    return (ended[0] - begun[0]) / max(ended[1] - begun[1], 1e-6), cpu


def _cpu_seconds(pid: int) -> float:
    """Return the CPU seconds of a running process, its start included; 0 where unknown."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def show(result: dict[str, Any]) -> str:
    """Return the result as a table."""
    rows = [
        [name, rate["median"], rate["min"], rate["max"], result["ratios"].get(name, "")]
        for name, rate in result["per_s"].items()
    ]
    return table(
        rows, header=["a second", "median", "min", "max", "decisions are so many times it"]
    )
