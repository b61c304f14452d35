"""The result of a run: what was done, what was found, and whether it proved anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from streams.topics import DECISIONS, OUTCOMES, REQUESTS
from tests.nemesis_parts.checker import Verdict
from tests.nemesis_parts.cluster import Cluster
from tests.nemesis_parts.evidence import Evidence, Ledger
from tests.nemesis_parts.faults import Nemesis

PER_MINUTE = {"faults": 25.0, "in_doubt": 1.0, "fenced": 0.5, "copies": 0.5}
"""What a run must have seen, or it proved nothing: faults, commits in doubt, fenced writers, and
decisions of two workers for one request."""
_IN_DOUBT = "a commit without reply was durable"
_FENCED = {"sink": "fenced off:", "worker": "another worker writes too"}


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
    exits: Mapping[str, Mapping[str, int]]
    recovery_s: Mapping[str, Mapping[str, float]]
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
            "copies": verdict["copies"],
            "copies_otherwise": verdict["copies_otherwise"],
            "overtaken": verdict["overtaken"],
            "recovery_s": dict(self.recovery_s),
            "exits": dict(self.exits),
            "too_few": self.too_few,
            "broken": verdict["broken"],
            "findings": verdict["findings"],
            "logs": self.logs,
        }


def make_result(
    seed: int, seconds: float, verdict: Verdict, evidence: Evidence, ledger: Ledger,
    nemesis: Nemesis, cluster: Cluster,
) -> Result:  # fmt: skip
    """Return the result; the thresholds grow with the time that faults were done."""
    result = Result(
        seed=seed,
        seconds=seconds,
        verdict=verdict,
        faults=dict(sorted(nemesis.done.items())),
        records={
            REQUESTS: len(evidence.requests),
            DECISIONS: len(evidence.decisions),
            OUTCOMES: len(evidence.outcomes),
        },
        in_doubt=cluster.count_in_logs("sink", _IN_DOUBT),
        fenced={kind: cluster.count_in_logs(kind, text) for kind, text in _FENCED.items()},
        exits={kind: cluster.exits(kind) for kind in ("worker", "sink")},
        recovery_s={felt: _quantiles(times) for felt, times in nemesis.recovery_s.items()},
    )
    seen = {
        "faults": sum(result.faults.values()),
        "in_doubt": result.in_doubt,
        "fenced": sum(result.fenced.values()),
        "copies": verdict.copies,
    }
    for name, rate in PER_MINUTE.items():
        wanted = int(rate * seconds / 60)
        if seen[name] < wanted:
            result.too_few.append(f"{name}: {seen[name]} of {wanted}")
    return result


def _quantiles(times: Sequence[float]) -> dict[str, float]:
    ordered = sorted(times)

    def at(share: float) -> float:
        return round(ordered[min(int(share * len(ordered)), len(ordered) - 1)], 2)

    return {"p50": at(0.5), "p95": at(0.95), "max": at(1.0), "count": len(ordered)}
