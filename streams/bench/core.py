"""The hot path without Kafka: what one worker's processor does for a request, step by step.

A chunk of requests is read, decided and written as decision records; then its outcomes are read
and settled. Times are of the processor, so that other programs on the machine disturb less. The
command looks for garbage as seldom as a worker does (:mod:`streams.collector`).
"""

from __future__ import annotations

import cProfile
import io
import pstats
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from policy.catalog import Catalog
from policy.decide import Decided, decide
from policy.outcomes import Arrivals
from policy.registry import make_policy
from policy.requests import Requests
from policy.settle import APPLIED, settle_all
from policy.state import State
from streams.bench.figures import spread, table
from streams.bench.workload import Value, Workload
from streams.intake import Intake, Raw
from streams.outgoing import decision_records

NOW_MS = 1_700_000_000_000
WARM = 2_048
"""Requests before the measured ones: new arms are asked whatever they cost, and caches fill."""
STEPS = ("read requests", "decide", "write decisions", "read outcomes", "settle")

Say = Callable[[str], None]


@dataclass(slots=True, kw_only=True)
class HotPath:
    """One partition's state, fed with chunks; the steps are those of ``streams.partition``."""

    workload: Workload
    state: State = field(init=False)
    intake: Intake = field(init=False)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STEPS, 0.0))
    written: int = 0
    _requests: int = 0
    _outcomes: int = 0

    def __post_init__(self) -> None:
        catalog = self.workload.catalog()
        self.state = new_state(catalog)
        self.intake = Intake(catalog, None)

    @property
    def now_ms(self) -> int:
        """Return the time of the next records: a thousand of them come in a second."""
        return NOW_MS + self._requests

    def incoming(self, values: Sequence[Value]) -> Requests:
        """Read requests."""
        found, refused = self.intake.requests(self._records(values, self._requests))
        assert not refused, refused
        self._requests += len(values)
        return found

    def arrivals(self, values: Sequence[Value]) -> Arrivals:
        """Read outcomes."""
        found, refused = self.intake.outcomes(self._records(values, self._outcomes))
        assert not refused, refused
        self._outcomes += len(values)
        return found

    def _records(self, values: Sequence[Value], offset: int) -> list[Raw]:
        now_ms = self.now_ms
        return [Raw(key, value, offset + i, now_ms) for i, (key, value) in enumerate(values)]

    def decide(self, incoming: Requests) -> Decided:
        """Decide requests."""
        return decide(self.state, incoming, now_ms=self.now_ms)

    def settle(self, arrivals: Arrivals) -> None:
        """Settle and learn from outcomes."""
        verdicts = settle_all(self.state, arrivals)
        assert all(verdict is APPLIED for verdict in verdicts), verdicts

    def records(self, decided: Decided) -> list[bytes]:
        """Write decisions as JSON."""
        return decision_records(
            decided, policy="pareto", features="given", catalog=1, statistics=1,
            seed=0, ttl_ms=600_000,
        )  # fmt: skip

    def run(self, requests: Sequence[Value], outcomes: Sequence[Value], *, chunk: int) -> None:
        """Pass all requests and their outcomes through, adding to ``seconds``."""
        for start in range(0, len(requests), chunk):
            part = slice(start, start + chunk)
            with self._timed("read requests"):
                incoming = self.incoming(requests[part])
            with self._timed("decide"):
                decided = self.decide(incoming)
            assert len(decided.choices) == len(incoming), "a benchmark's requests never wait"
            with self._timed("write decisions"):
                records = self.records(decided)
            self.written += sum(map(len, records))
            if outcomes:
                with self._timed("read outcomes"):
                    arrivals = self.arrivals(outcomes[part])
                with self._timed("settle"):
                    self.settle(arrivals)

    @contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        begun = time.process_time()
        yield
        self.seconds[step] += time.process_time() - begun


def new_state(catalog: Catalog) -> State:
    """Return the empty state of a partition."""
    dimensions = catalog.settings.dimensions
    return State(dimensions=dimensions, make_policy=make_policy, catalog=catalog)


def warmed(workload: Workload, *, chunk: int, outcomes: bool = True) -> HotPath:
    """Return a hot path that has decided a while."""
    path = HotPath(workload=workload)
    settled = workload.outcomes(WARM, number=999) if outcomes else []
    path.run(workload.requests(WARM, number=999), settled, chunk=chunk)
    path.seconds = dict.fromkeys(STEPS, 0.0)
    path.written = 0
    return path


def measure(
    workload: Workload, *, requests: int, chunk: int, rounds: int, outcomes: bool, say: Say
) -> dict[str, Any]:
    """Return microseconds a request of every step: median and spread of the rounds."""
    found: dict[str, list[float]] = {step: [] for step in (*STEPS, "all")}
    path = warmed(workload, chunk=chunk, outcomes=outcomes)
    for number in range(rounds):
        path.seconds = dict.fromkeys(STEPS, 0.0)
        path.written = 0
        settled = workload.outcomes(requests, number=number) if outcomes else []
        path.run(workload.requests(requests, number=number), settled, chunk=chunk)
        for step, seconds in path.seconds.items():
            found[step].append(seconds / requests * 1e6)
        found["all"].append(sum(path.seconds.values()) / requests * 1e6)
        say(f"round {number + 1} of {rounds}: {found['all'][-1]:.1f} us a request")
    return {
        "us_per_request": {step: spread(values) for step, values in found.items()},
        "decision_bytes": round(path.written / requests),
        "ratios": {
            f"{step} of all": round(spread(found[step])["median"] / spread(found["all"])["median"],
                                    3)
            for step in STEPS
        },
        "shape": {
            "arms": workload.arms, "features": workload.features, "budgets": workload.budgets,
            "levels": workload.levels, "requests": requests, "chunk": chunk, "rounds": rounds,
        },
    }  # fmt: skip


def show(result: dict[str, Any]) -> str:
    """Return the result as a table."""
    rows = [[step, *us.values()] for step, us in result["us_per_request"].items()]
    return table(rows, header=["us of processor a request", "median", "min", "max"])


def profile(
    workload: Workload, *, requests: int, chunk: int, outcomes: bool, sort: str, lines: int
) -> str:
    """Return where the time goes by function; the profiler makes calls dearer than they are."""
    path = warmed(workload, chunk=chunk, outcomes=outcomes)
    values = workload.requests(requests)
    settled = workload.outcomes(requests) if outcomes else []
    profiler = cProfile.Profile()
    profiler.enable()
    path.run(values, settled, chunk=chunk)
    profiler.disable()
    text = io.StringIO()
    pstats.Stats(profiler, stream=text).sort_stats(sort).print_stats(lines)
    return text.getvalue()
