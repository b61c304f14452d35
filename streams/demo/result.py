"""What a run has shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from streams.demo.laws import Verdict
from streams.demo.measures import Snapshot
from streams.demo.references import Line
from streams.demo.story import Effect
from streams.ledger.verify import Report


@dataclass(frozen=True, slots=True, kw_only=True)
class Spend:
    """What one window of one root lost of its limit; ``begun_s`` is the second of the run."""

    budget: str
    window: str
    begun_s: float
    limit_nanousd: int
    gone_nanousd: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Latencies from request to decision in milliseconds, and how busy it was.

    ``calm`` leaves out what was sent while a killed worker's partitions had no owner.
    """

    p50_ms: float
    p99_ms: float
    calm_p50_ms: float
    calm_p99_ms: float
    decisions_per_s: float
    in_flight_p10: float
    in_flight_p50: float
    in_flight_max: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Everything that is told at the end."""

    verdict: Verdict
    report: Report
    audits_wrong: Mapping[str, int]
    spends: Sequence[Spend]
    lines: Sequence[Line]
    effects: Sequence[Effect]
    last: Snapshot
    speed: Speed
    example: str

    @property
    def ok(self) -> bool:
        """Whether every law held and the ledger is what the topics say."""
        return self.verdict.ok and self.report.ok and not any(self.audits_wrong.values())
