"""The result of a run: what was done, what was found, and whether it proved anything."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from streams.topics import DEAD_LETTERS, DECISIONS, OUTCOMES, REQUESTS
from tests.nemesis_parts.checker import Verdict
from tests.nemesis_parts.cluster import Cluster
from tests.nemesis_parts.evidence import Evidence, Ledger
from tests.nemesis_parts.faults import Nemesis
from tests.nemesis_parts.plan import RATES

PER_MINUTE = {"faults": 25.0, "in_doubt": 1.0, "fenced": 0.5, "overlapping": 0.5}
"""What a run must have seen, or it proved nothing: faults, commits in doubt, fenced writers, and
batches of decisions that a worker wrote when another had the partition."""
EVERY_KIND_S = 240.0
"""A run of so long must have had faults of every kind."""
_IN_DOUBT = r"a commit without reply was durable"
_FENCED = {"sink": r"fenced off:", "worker": r"(Ending the process|was let go): FencedError"}
_OVERLAPPING = rf"{_FENCED['worker']}.*{DECISIONS}/.* (\d+) batches were refused"


@dataclass(slots=True, kw_only=True)
class Result:
    """Everything that is printed."""

    seed: int
    seconds: float
    verdict: Verdict
    faults: Mapping[str, int]
    records: Mapping[str, int]
    in_doubt: int
    fenced: Mapping[str, int]
    overlapping: int
    exits: Mapping[str, Mapping[str, int]]
    recovery_s: Mapping[str, Sequence[float]]
    logs: str = ""
    too_few: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every law held in a run that could have broken it."""
        return not self.verdict.broken and not self.too_few

    def as_dict(self) -> dict[str, Any]:
        """Return the result as JSON takes it."""
        verdict = asdict(self.verdict)
        return {
            "ok": self.ok,
            "seed": self.seed,
            "seconds": round(self.seconds, 1),
            "faults": {"total": sum(self.faults.values()), **self.faults},
            "records": sum(self.records.values()),
            "records_by_topic": dict(self.records),
            "lost": verdict["lost"],
            "doubled": verdict["doubled"],
            "overspent_nanousd": verdict["overspent_nanousd"],
            "in_doubt": self.in_doubt,
            "fenced": sum(self.fenced.values()),
            "fenced_by_kind": dict(self.fenced),
            "overlapping": self.overlapping,
            "recovery_s": quantiles([self]),
            "exits": dict(self.exits),
            "too_few": self.too_few,
            "broken": verdict["broken"],
            "findings": verdict["findings"],
            "logs": self.logs,
        }


def too_few(seconds: float, nemesis: Nemesis, cluster: Cluster) -> list[str]:
    """Return what has happened too seldom for a run of so many seconds, with the counts."""
    seen = {
        "faults": nemesis.done.total(),
        "in_doubt": _in_doubt(cluster),
        "fenced": sum(_fenced(cluster).values()),
        "overlapping": _overlapping(cluster),
    }
    found = []
    for name, rate in PER_MINUTE.items():
        wanted = int(rate * seconds / 60)
        if seen[name] < wanted:
            found.append(f"{name}: {seen[name]} of {wanted}")
    if seconds >= EVERY_KIND_S:
        found += [f"{kind}: none" for kind in RATES if kind not in nemesis.done]
    return found


def _in_doubt(cluster: Cluster) -> int:
    return len(cluster.find_in_logs("sink", _IN_DOUBT))


def _fenced(cluster: Cluster) -> dict[str, int]:
    return {kind: len(cluster.find_in_logs(kind, text)) for kind, text in _FENCED.items()}


def _overlapping(cluster: Cluster) -> int:
    return sum(int(match[2]) for match in cluster.find_in_logs("worker", _OVERLAPPING))


def make_result(
    seed: int, seconds: float, verdict: Verdict, evidence: Evidence, ledger: Ledger,
    nemesis: Nemesis, cluster: Cluster,
) -> Result:  # fmt: skip
    """Return the result of a run that was asked to do faults for so many seconds."""
    return Result(
        seed=seed,
        seconds=nemesis.lasted_s,
        verdict=verdict,
        faults=dict(sorted(nemesis.done.items())),
        records={
            REQUESTS: len(evidence.requests),
            DECISIONS: len(evidence.decisions),
            OUTCOMES: len(evidence.outcomes),
            DEAD_LETTERS: sum(map(len, evidence.letters.values())),
        },
        in_doubt=_in_doubt(cluster),
        fenced=_fenced(cluster),
        overlapping=_overlapping(cluster),
        exits={kind: cluster.exits(kind) for kind in ("worker", "sink")},
        recovery_s=dict(nemesis.recovery_s),
        too_few=too_few(seconds, nemesis, cluster),
    )


def sum_up(results: Sequence[Result]) -> dict[str, Any]:
    """Return the sum of several runs, with each of them under ``runs``."""
    runs = [result.as_dict() for result in results]
    faults: Counter[str] = Counter()
    for run in runs:
        faults.update(run["faults"])
    counts = ("seconds", "records", "lost", "doubled", "in_doubt", "fenced", "overlapping")
    return {
        "ok": all(result.ok for result in results),
        "seeds": [result.seed for result in results],
        "faults": dict(faults),
        **{name: sum(run[name] for run in runs) for name in counts},
        "overspent_nanousd": max(run["overspent_nanousd"] for run in runs),
        "recovery_s": quantiles(results),
        "runs": runs,
    }


def quantiles(results: Sequence[Result]) -> dict[str, dict[str, float]]:
    """Return how long recoveries took, by what was killed."""
    found: dict[str, list[float]] = defaultdict(list)
    for result in results:
        for felt, times in result.recovery_s.items():
            found[felt] += times
    return {felt: _quantiles(sorted(times)) for felt, times in sorted(found.items())}


def _quantiles(ordered: Sequence[float]) -> dict[str, float]:
    def at(share: float) -> float:
        return round(ordered[min(int(share * len(ordered)), len(ordered) - 1)], 2)

    return {"p50": at(0.5), "p95": at(0.95), "max": at(1.0), "count": len(ordered)}
