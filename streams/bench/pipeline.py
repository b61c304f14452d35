"""Requests to decisions per second of one worker, beside programs that only pass records on.

Each program finds the same backlog on the broker. The worker is measured twice: with requests
alone, and with as many outcomes of earlier decisions, so that each decision comes with a
settlement that teaches. What the sink needs for the same decisions is measured after that.
"""

from __future__ import annotations

import asyncio
import importlib.util
import io
import pstats
import sys
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from streams import topics
from streams.bench.backlog import Ends, Progress, Timing, create_topics, produce, timed
from streams.bench.figures import ratio, ratio_lines, spread, table
from streams.bench.ledger_cost import sink_cost
from streams.bench.programs import TOLLWAY, Program, echo, loopback_port, worker_settings
from streams.bench.workload import Workload
from streams.client import Client

STOCK_SHARE = 0.1
"""Stock Faust gets so much of the backlog: it would take a minute otherwise."""
OTHERS = {"raw": "raw_echo", "confluent": "confluent_echo", "stock": "stock_faust"}
"""What the worker is compared with, and its name in the result."""
PROFILE_LINES = 60

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What is measured: sizes of the catalog, of the requests and of the run."""

    arms: int = 10
    features: int = 26
    budgets: int = 64
    levels: int = 2
    partitions: int = 8
    requests: int = 60_000
    rounds: int = 3

    def workload(self) -> Workload:
        """Return the catalog and requests of this shape."""
        return Workload(
            arms=self.arms, features=self.features, budgets=self.budgets, levels=self.levels,
            partitions=self.partitions,
        )  # fmt: skip


def grid(base: Shape) -> list[Shape]:
    """Return the base, and what differs from it in the arms, the features or the budgets."""
    others: list[dict[str, int]] = [
        {"arms": 3}, {"arms": 50}, {"features": 64}, {"budgets": 10}, {"budgets": 100_000}
    ]  # fmt: skip
    return [base, *(replace(base, **other) for other in others)]


@dataclass(slots=True, kw_only=True)
class Run:
    """One run on one broker: what is known, and what was measured so far."""

    kafka: str
    home: Path
    shape: Shape
    broker_pid: int | None
    others: Sequence[str]
    timings: dict[str, list[Timing]] = field(default_factory=dict)

    async def round(self, ends: Ends, number: int) -> None:
        """Measure every program once."""
        shape, workload = self.shape, self.shape.workload()
        values = workload.requests(shape.requests, number=number)
        source = f"bench.in.{number}"
        few = values[: max(int(len(values) * STOCK_SHARE), 1)]
        for topic, part in ((source, values), (f"{source}.few", few)):
            await create_topics(self.kafka, [topic], partitions=shape.partitions)
            await produce(self.kafka, topic, part, partitions=shape.partitions)
        for kind in self.others:
            small = kind == "stock"
            await self._echo(kind, f"{source}.few" if small else source, ends,
                             len(few if small else values))  # fmt: skip
        await self._produce(topics.REQUESTS, values)
        await self._work("decisions", ends, TOLLWAY)
        await self._work_with_outcomes("settled", ends, TOLLWAY, number)

    async def profile(self, ends: Ends) -> str:
        """Run a worker under cProfile, with outcomes; return the functions by their own time.

        The profiler makes calls dearer than they are: compare, do not add up.
        """
        self.home.mkdir(parents=True, exist_ok=True)
        path = self.home / "worker.profile"
        profiled = [sys.executable, "-m", "cProfile", "-o", str(path), "-m", "streams"]
        await self._work_with_outcomes("profiled", ends, profiled, self.shape.rounds - 1)
        del self.timings["profiled"]
        text = io.StringIO()
        pstats.Stats(str(path), stream=text).sort_stats("tottime").print_stats(PROFILE_LINES)
        return text.getvalue()

    async def _work_with_outcomes(
        self, name: str, ends: Ends, tollway: Sequence[str], number: int
    ) -> None:
        """Time a worker on new requests and on the outcomes of those of round ``number``."""
        workload, count = self.shape.workload(), self.shape.requests
        await self._produce(topics.REQUESTS, workload.requests(count, number=number, tag=name))
        tag = "" if name == "settled" else "settled"
        await self._produce(topics.OUTCOMES, workload.outcomes(count, number=number, tag=tag))
        port = loopback_port()
        await self._work(name, ends, tollway, lambda: _settled(port), METRICS_PORT=port)

    async def _produce(self, topic: str, values: list[tuple[bytes, bytes]]) -> None:
        await produce(self.kafka, topic, values, partitions=self.shape.partitions)

    async def _echo(self, kind: str, source: str, ends: Ends, records: int) -> None:
        target = f"{source}.{kind}"
        await create_topics(self.kafka, [target], partitions=self.shape.partitions)
        timing = await timed(
            Program(echo(kind, self.kafka, source, target)), ends=ends, topic=target,
            records=records, broker_pid=self.broker_pid,
        )  # fmt: skip
        self.timings.setdefault(OTHERS[kind], []).append(timing)

    async def _work(
        self, name: str, ends: Ends, tollway: Sequence[str], progress: Progress | None = None,
        **more: int,
    ) -> None:  # fmt: skip
        settings = worker_settings(
            self.kafka, self.home, partitions=self.shape.partitions, RESERVATION_TTL_S=86_400,
            **more,
        )  # fmt: skip
        timing = await timed(
            Program([*tollway, "worker"], settings), ends=ends, topic=topics.DECISIONS,
            records=self.shape.requests, broker_pid=self.broker_pid, progress=progress,
        )  # fmt: skip
        self.timings.setdefault(name, []).append(timing)


async def measure(
    kafka: str, home: Path, shape: Shape, *, say: Say, broker_pid: int | None = None,
    sink: bool = True, profile: bool = False, others: Sequence[str] = tuple(OTHERS),
) -> dict[str, Any]:  # fmt: skip
    """Return rates, ratios and processor seconds; median and spread of the rounds."""
    await topics.create(kafka, app_id="tollway", partitions=shape.partitions)
    async with Client(kafka) as client:
        await client.declare(shape.workload().entries())
    if importlib.util.find_spec("confluent_kafka") is None:
        others = [kind for kind in others if kind != "confluent"]
    run = Run(kafka=kafka, home=home, shape=shape, broker_pid=broker_pid, others=others)
    async with Ends(kafka, partitions=shape.partitions) as ends:
        for number in range(shape.rounds):
            await run.round(ends, number)
            told = ", ".join(f"{name} {t[-1].per_s:,.0f}/s" for name, t in run.timings.items())
            say(f"round {number + 1} of {shape.rounds}: {told}")
        if profile:
            say(await run.profile(ends))
        decisions = sum(
            [await ends.records_end(topics.DECISIONS, n) for n in range(shape.partitions)]
        )
    costs: dict[str, float] = {}
    if sink:
        costs = await sink_cost(kafka, home, partitions=shape.partitions, decisions=decisions)
    return summarise(run.timings, shape) | {"sink": costs}


def summarise(timings: dict[str, list[Timing]], shape: Shape) -> dict[str, Any]:
    """Return medians, spreads and ratios; a ratio compares the rates of the same round."""
    rates = {name: [timing.per_s for timing in t] for name, t in timings.items()}
    others = [name for name in rates if name not in ("decisions", "settled")]
    ratios = {name: ratio(rates["decisions"], rates[name]) for name in others}
    ratios |= {f"{name}_settled": ratio(rates["settled"], rates[name]) for name in others}
    return {
        "decisions_per_s": round(spread(rates["decisions"])["median"]),
        "ratios": ratios,
        "per_s": {name: spread(values, 0) for name, values in rates.items()},
        "cpu_s_per_million": {
            name: {"program": _middle([t.cpu_s for t in of]),
                   "broker": _middle([t.broker_cpu_s for t in of])}
            for name, of in timings.items()
        },
        "shape": asdict(shape),
    }  # fmt: skip


def show(result: dict[str, Any]) -> str:
    """Return the result as tables."""
    ratios, cpu = result["ratios"], result["cpu_s_per_million"]
    rows = [
        [name, *(per_s[key] for key in ("median", "min", "max")),
         cpu[name]["program"] or "", cpu[name]["broker"] or ""]
        for name, per_s in result["per_s"].items()
    ]  # fmt: skip
    header = ["", "per s", "min", "max", "CPU s per million", "broker's"]
    lines = [table(rows, header=header), ratio_lines(ratios)]
    if result["sink"]:
        lines.append("sink: " + ", ".join(f"{k} {v:,.0f}" for k, v in result["sink"].items()))
    for other in result.get("grid", ()):
        shape = other["shape"]
        title = f"{shape['arms']} arms, {shape['features']} features, {shape['budgets']:,} budgets"
        lines += ["", title, show(other)]
    return "\n".join(lines)


async def _settled(port: int) -> int:
    """Return how many outcomes the worker has settled since it was started."""

    def ask() -> int:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as page:
                text = page.read().decode()
        except OSError:
            return 0  # it is not up yet
        lines = [line for line in text.splitlines() if line.startswith("tollway_outcomes_total")]
        return sum(int(float(line.rpartition(" ")[2])) for line in lines)

    return await asyncio.to_thread(ask)


def _middle(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return spread(known)["median"] if known else None
