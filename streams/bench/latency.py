"""How long a request takes until its decision can be read, beside a raw echo at the same rate.

Requests arrive at random times (a Poisson process) that are drawn beforehand, whatever is still
unanswered: an open loop. A latency counts from the time at which a request was to be sent until
its answer was read, both by the clock of the one process that sends and reads; so it contains
what the sender was late, and a pause of anybody is felt by all requests that fell into it.

Both programs answer many requests before anything is measured: a broker that has just begun
compiles its own code for half a minute, on the processors that all of them share.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from streams import topics
from streams.bench.backlog import create_topics
from streams.bench.core import Say
from streams.bench.figures import ratio, ratio_lines, spread, table
from streams.bench.programs import TOLLWAY, Program, ProgramError, echo, worker_settings
from streams.bench.workload import Value, Workload
from streams.client import Client
from streams.publisher import make_producer

RATES = (100, 500, 2_000)
QUANTILES = {"p50": 50.0, "p99": 99.0, "p99.9": 99.9}
SOURCE, TARGET = "bench.latency.in", "bench.latency.out"
_READY_S = 90.0
_LAST_S = 30.0
WARM_UP, WARM_RATE = 20_000, 2_000
"""Requests that each program answers beforehand, and how many a second."""


class _Answer(msgspec.Struct):
    """What is read of an answer: the request it belongs to."""

    request_id: str


@dataclass(slots=True, kw_only=True)
class Caller:
    """Sends requests at given times and notes when their answers are read."""

    producer: AIOKafkaProducer
    consumer: AIOKafkaConsumer
    late_ms: list[float] = field(default_factory=list)
    _read_at: dict[str, float] = field(default_factory=dict)
    _outcomes: dict[str, Value] = field(default_factory=dict)

    async def read(self) -> None:
        """Read answers until cancelled; where an outcome is waiting for one, send it."""
        decoder = msgspec.json.Decoder(_Answer)
        while True:
            fetched = await self.consumer.getmany(timeout_ms=1_000)
            now = time.monotonic()
            for records in fetched.values():
                for record in records:
                    request_id = decoder.decode(record.value).request_id
                    self._read_at.setdefault(request_id, now)
                    outcome = self._outcomes.pop(request_id, None)
                    if outcome is not None:
                        key, value = outcome
                        await self.producer.send(topics.OUTCOMES, value, key=key)

    async def call(
        self, topic: str, values: Sequence[Value], at_s: Sequence[float], *, wait_s: float,
        outcomes: Sequence[Value] = (),
    ) -> list[float]:  # fmt: skip
        """Return the latencies in ms of requests that are sent at these times from now.

        Raises
        ------
        ProgramError
            If an answer has not come ``wait_s`` after the last request.
        """
        ids = [_id(value) for _, value in values]
        self._read_at.clear()
        self._outcomes = dict(zip(ids, outcomes, strict=True)) if outcomes else {}
        begun = time.monotonic()
        for (key, value), at in zip(values, at_s, strict=True):
            ahead = begun + at - time.monotonic()
            # Sleep is too coarse for the shortest gaps: what is due within it is sent now.
            if ahead > 0.0005:
                await asyncio.sleep(ahead)
            await self.producer.send(topic, value, key=key)
            self.late_ms.append(max(time.monotonic() - begun - at, 0.0) * 1_000)
        deadline = time.monotonic() + wait_s
        while len(self._read_at) < len(ids):
            if time.monotonic() > deadline:
                raise ProgramError(
                    f"{topic}: {len(self._read_at)} of {len(ids)} answers after {wait_s} s"
                )
            await asyncio.sleep(0.02)
        return [
            (self._read_at[name] - begun - at) * 1_000 for name, at in zip(ids, at_s, strict=True)
        ]


async def measure(
    kafka: str, home: Path, *, workload: Workload, seconds: float, rounds: int, say: Say,
    rates: Sequence[int] = RATES, outcomes: bool = True, warm_up: int = WARM_UP,
) -> dict[str, Any]:  # fmt: skip
    """Return the latencies of the worker and of the echo at every rate, and the ratios.

    Both programs run all the time; they are called in turn.
    """
    partitions = workload.partitions
    await topics.create(kafka, app_id="tollway", partitions=partitions)
    await create_topics(kafka, [SOURCE, TARGET], partitions=partitions)
    async with Client(kafka) as client:
        await client.declare(workload.entries())
    found: dict[str, dict[int, list[dict[str, float]]]] = {"decision": {}, "raw_echo": {}}
    settings = worker_settings(kafka, home, partitions=partitions)
    producer, consumer = make_producer(kafka), await _reader(kafka, partitions)
    await producer.start()
    caller = Caller(producer=producer, consumer=consumer)
    reading = asyncio.create_task(caller.read())
    try:
        with Program([*TOLLWAY, "worker"], settings), Program(echo("raw", kafka, SOURCE, TARGET)):
            await _warm(caller, workload, warm_up, outcomes=outcomes)
            for number in range(rounds):
                for rate in rates:
                    answered = await _segment(
                        caller, workload, number, rate, seconds, outcomes=outcomes
                    )
                    for name, latencies in answered.items():
                        found[name].setdefault(rate, []).append(_quantiles(latencies))
                    told = ", ".join(
                        f"{name} " + "/".join(f"{q:.1f}" for q in of[rate][-1].values())
                        for name, of in found.items()
                    )
                    say(f"round {number + 1} of {rounds}, {rate}/s: ms at p50/p99/p99.9: {told}")
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        await consumer.stop()
        await producer.stop()
    shape = {
        "arms": workload.arms, "features": workload.features, "budgets": workload.budgets,
        "partitions": partitions, "seconds": seconds, "rounds": rounds, "outcomes": outcomes,
        "warm_up": warm_up,
    }  # fmt: skip
    return summarise(found, caller.late_ms, shape)


async def _warm(caller: Caller, workload: Workload, count: int, *, outcomes: bool) -> None:
    at_s = [number / WARM_RATE for number in range(count)]
    values = workload.requests(count, tag="warm")
    answers = workload.outcomes(count, tag="warm") if outcomes else ()
    await caller.call(SOURCE, values, at_s, wait_s=_READY_S)
    await caller.call(topics.REQUESTS, values, at_s, wait_s=_READY_S, outcomes=answers)
    caller.late_ms.clear()


async def _segment(
    caller: Caller, workload: Workload, number: int, rate: int, seconds: float, *, outcomes: bool
) -> dict[str, list[float]]:
    """Call both programs with the same requests at the same times, the first one in turn."""
    count = max(int(rate * seconds), 1)
    gaps = np.random.default_rng([workload.seed, number, rate]).exponential(1 / rate, count)
    at_s: list[float] = np.cumsum(gaps).tolist()
    values = workload.requests(count, number=number, tag=f"{rate}")
    settled = workload.outcomes(count, number=number, tag=f"{rate}") if outcomes else ()
    answered = {}
    for name in ("raw_echo", "decision") if number % 2 else ("decision", "raw_echo"):
        mine = name == "decision"
        answered[name] = await caller.call(
            topics.REQUESTS if mine else SOURCE, values, at_s, wait_s=_LAST_S,
            outcomes=settled if mine else (),
        )  # fmt: skip
    return answered


async def _reader(kafka: str, partitions: int) -> AIOKafkaConsumer:
    consumer = AIOKafkaConsumer(
        bootstrap_servers=kafka, group_id=None, enable_auto_commit=False,
        auto_offset_reset="latest",
    )  # fmt: skip
    await consumer.start()
    places = [
        TopicPartition(topic, number)
        for topic in (TARGET, topics.DECISIONS)
        for number in range(partitions)
    ]
    consumer.assign(places)
    await consumer.seek_to_end(*places)
    for place in places:
        await consumer.position(place)
    return consumer


def summarise(
    found: dict[str, dict[int, list[dict[str, float]]]], late_ms: Sequence[float],
    shape: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Return medians, spreads and ratios; a ratio compares the same round."""
    ratios = {
        f"{name}_at_{rate}": ratio(
            [mine[name] for mine in rounds], [echo[name] for echo in found["raw_echo"][rate]]
        )
        for rate, rounds in found["decision"].items()
        for name in QUANTILES
    }
    return {
        "latency_ms": {
            name: {
                str(rate): {q: spread([r[q] for r in rounds], 2) for q in QUANTILES}
                for rate, rounds in of.items()
            }
            for name, of in found.items()
        },
        "sender_late_ms": _quantiles(late_ms),
        "ratios": ratios,
        "shape": shape,
    }


def show(result: dict[str, Any]) -> str:
    """Return the result as a table."""
    rows = [
        [name, rate, quantile, *ms.values()]
        for name, of in result["latency_ms"].items()
        for rate, quantiles in of.items()
        for quantile, ms in quantiles.items()
    ]
    late = ", ".join(f"{q} {ms:.2f}" for q, ms in result["sender_late_ms"].items())
    text = table(rows, header=["latency in ms", "per s", "of", "median", "min", "max"])
    return f"{text}\nthe sender was late, ms: {late}\n{ratio_lines(result['ratios'])}"


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    found = np.percentile(np.array(values), list(QUANTILES.values())).tolist()
    return {name: round(value, 3) for name, value in zip(QUANTILES, found, strict=True)}


def _id(value: bytes) -> str:
    return msgspec.json.decode(value, type=_Answer).request_id
