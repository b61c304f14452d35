"""What a worker counts, for Prometheus."""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Sequence

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge

from policy.decide import Decided
from policy.money import NANO_PER_USD
from policy.settle import Verdict
from policy.state import State


class Metrics:
    """The worker's counters and gauges, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.decisions = Counter(
            "tollway_decisions", "Decisions by arm; rejections by reason.", ["arm", "rejected"],
            registry=self.registry,
        )  # fmt: skip
        self.duplicates = Counter(
            "tollway_duplicate_requests", "Requests that were decided before.",
            registry=self.registry,
        )  # fmt: skip
        self.outcomes = Counter(
            "tollway_outcomes", "Outcomes by effect.", ["effect"], registry=self.registry
        )
        self.dead_letters = Counter(
            "tollway_dead_letters", "Records that were refused.", ["topic", "reason"],
            registry=self.registry,
        )  # fmt: skip
        self.waiting = Gauge(
            "tollway_waiting_requests", "Requests that wait for money in flight.", ["partition"],
            registry=self.registry,
        )  # fmt: skip
        self.open = Gauge(
            "tollway_open_reservations", "Reservations not settled yet.", ["partition"],
            registry=self.registry,
        )  # fmt: skip
        self.reserved = Gauge(
            "tollway_reserved_usd", "Dollars in flight, by budget root.", ["budget"],
            registry=self.registry,
        )  # fmt: skip
        self.checkpoint_pages = Counter(
            "tollway_checkpoint_pages", "Pages written to the tables.", registry=self.registry
        )

    def count(self, partition: int, decided: Decided, state: State) -> None:
        """Count what one call of ``decide`` did."""
        self.duplicates.inc(len(decided.duplicates))
        choices = decided.choices
        names = [*(arm.arm for arm in choices.arms), ""]
        for column, count in Counts(choices.column[choices.rows].tolist()).items():
            if column >= 0:
                self.decisions.labels(names[column], "").inc(count)
        for reason, count in Counts(choices.rejected.values()).items():
            self.decisions.labels("", reason).inc(count)
        pairs = decided.rounds.pairs
        roots = pairs.budget[pairs.starts[:-1][np.diff(pairs.starts) > 0]]
        for root in sorted(set(roots.tolist())):
            reserved = int(state.budgets.reserved[root]) / NANO_PER_USD
            self.reserved.labels(state.budgets.names[root]).set(reserved)
        self.waiting.labels(partition).set(len(state.waiting))
        self.open.labels(partition).set(state.reservations.open_count)

    def count_outcomes(self, verdicts: Sequence[Verdict]) -> None:
        """Count what became of outcomes."""
        for effect, count in Counts(verdict.effect for verdict in verdicts).items():
            self.outcomes.labels(effect).inc(count)
