"""What a worker counts, for Prometheus."""

from __future__ import annotations

from collections import Counter as Counts

from prometheus_client import CollectorRegistry, Counter, Gauge

from policy.decide import Decided
from policy.money import NANO_PER_USD
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
        made = Counts((choice.arm or "", choice.rejected or "") for choice in decided.choices)
        for labels, count in made.items():
            self.decisions.labels(*labels).inc(count)
        last = {choice.budgets[0][0]: choice.budgets[0] for choice in decided.choices
                if choice.budgets}  # fmt: skip
        for budget, position in last.items():
            self.reserved.labels(budget).set(position[3] / NANO_PER_USD)
        self.waiting.labels(partition).set(len(state.waiting))
        self.open.labels(partition).set(state.reservations.open_count)
