"""What a decision costs as budgets, arms, features, partitions and history grow, without Kafka.

Every variation differs from the base in one size. All of them exist side by side and take turns
within a round; a ratio compares the ends of one size within each round.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from streams.bench.core import STEPS, HotPath, Say
from streams.bench.figures import ratio, ratio_lines, spread, table
from streams.bench.memory import bytes_per_thing
from streams.bench.workload import Workload

BASE = Workload()
BATCH = 2_048
"""Requests that are under way together, over all partitions."""
CHUNK_MAX = 512
SIZES: Mapping[str, Sequence[int]] = {
    "budgets": (10, 1_000, 100_000),
    "arms": (3, 10, 100),
    "features": (26, 64, 256),
    "partitions": (1, 8, 64),
    "history": (0, 10_000, 100_000),
}
WARM = 2_048
"""Requests before the measured ones; more where budgets are to be used or a history is to be."""
_DECISION, _SETTLEMENT = STEPS[:3], STEPS[3:]


@dataclass(slots=True, kw_only=True)
class Variation:
    """One size of one kind: its states, and what it took in each round, in microseconds."""

    kind: str
    size: int
    paths: list[HotPath]
    rounds: list[dict[str, float]]

    @classmethod
    def make(cls, kind: str, size: int, *, warm: int) -> Variation:
        """Return a variation that has decided a while: every budget once, all of its history."""
        workload, partitions, before = BASE, 1, warm
        if kind == "budgets":
            workload, before = replace(BASE, budgets=size), max(size, warm)
        elif kind == "arms":
            workload = replace(BASE, arms=size)
        elif kind == "features":
            workload = replace(BASE, features=size)
        elif kind == "partitions":
            partitions = size
        else:
            before += size
        paths = [HotPath(workload=workload) for _ in range(partitions)]
        made = cls(kind=kind, size=size, paths=paths, rounds=[])
        # Warmed by decisions alone, except for as many as teach the policy something.
        made.run(warm, tag="warm", outcomes=True)
        if before > warm:
            made.run(before, tag="before", outcomes=kind == "history")
        made.rounds.clear()
        return made

    def run(self, requests: int, *, tag: str, outcomes: bool = True) -> None:
        """Decide and settle requests, divided evenly over the partitions; note what it took."""
        workload = self.paths[0].workload
        each = max(requests // len(self.paths), 1)
        chunk = max(min(BATCH // len(self.paths), CHUNK_MAX), 1)
        for path in self.paths:
            path.seconds = dict.fromkeys(STEPS, 0.0)
        for number, path in enumerate(self.paths):
            settled = workload.outcomes(each, number=number, tag=tag) if outcomes else []
            path.run(workload.requests(each, number=number, tag=tag), settled, chunk=chunk)
        spent = {step: sum(path.seconds[step] for path in self.paths) for step in STEPS}
        us = {step: seconds / (each * len(self.paths)) * 1e6 for step, seconds in spent.items()}
        self.rounds.append(
            {
                "decision": sum(us[step] for step in _DECISION),
                "settlement": sum(us[step] for step in _SETTLEMENT),
                "checkpoint_ms": self._checkpoint_ms(),
            }
        )

    def of(self, what: str) -> list[float]:
        """Return one figure of every round."""
        return [figures[what] for figures in self.rounds]

    def _checkpoint_ms(self) -> float:
        """Return what packing the dirty pages takes, which a worker does once a second."""
        begun = time.process_time()
        for path in self.paths:
            for page in path.state.gate.dirty:
                path.state.dump_page(page)
            path.state.gate.dirty.clear()
        return (time.process_time() - begun) * 1e3


def measure(
    *, requests: int, rounds: int, say: Say, sizes: Mapping[str, Sequence[int]] = SIZES,
    weighed: int = 20_480, warm: int = WARM,
) -> dict[str, Any]:  # fmt: skip
    """Return microseconds a decision by kind and size, ratios, and bytes of things.

    Things are weighed by ``weighed`` of them; 0 for not at all.
    """
    made = []
    for kind, of in sizes.items():
        for size in of:
            made.append(Variation.make(kind, size, warm=warm))
            say(f"made {kind} {size:,}")
    for number in range(rounds):
        for variation in made:
            variation.run(requests, tag=f"round-{number}")
        say(f"round {number + 1} of {rounds}")
    ends = {kind: [v for v in made if v.kind == kind] for kind in sizes}
    return {
        "us": {
            kind: {
                str(v.size): {what: spread(v.of(what)) for what in v.rounds[0]} for v in variations
            }
            for kind, variations in ends.items()
        },
        "ratios": {
            f"{kind}_{of[0].size}_to_{of[-1].size}{suffix}": ratio(
                of[-1].of(what), of[0].of(what)
            )
            for kind, of in ends.items()
            for what, suffix in (("decision", ""), ("settlement", "_settlement"))
        },
        "bytes": bytes_per_thing(count=weighed, features=BASE.features) if weighed else {},
        "shape": {"requests": requests, "rounds": rounds, "arms": BASE.arms,
                  "features": BASE.features, "budgets": BASE.budgets},
    }  # fmt: skip


def show(result: dict[str, Any]) -> str:
    """Return the result as a table."""
    rows = [
        [kind, int(size), *(figures[what]["median"] for what in figures),
         figures["decision"]["min"], figures["decision"]["max"]]
        for kind, sizes in result["us"].items()
        for size, figures in sizes.items()
    ]  # fmt: skip
    header = ["", "size", "us a decision", "us a settlement", "ms a checkpoint", "min", "max"]
    weights = ", ".join(f"{name} {size:,.0f}" for name, size in result["bytes"].items())
    return f"{table(rows, header=header)}\n{ratio_lines(result['ratios'])}\nbytes: {weights}"
