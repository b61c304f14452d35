"""What is measured while the demo runs, from the decisions and the outcomes that it sends."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from policy.calendar import window_end_ms
from streams.records import BudgetPosition, Decision

RECENT_S = 8.0
"""How far back traffic shares, rewards and rates look."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetRow:
    """One budget as its last decision showed it; ``plan_share`` is the part of its time gone."""

    budget: str
    limit_nanousd: int
    settled_nanousd: int
    reserved_nanousd: int
    dual_price: float
    plan_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmRow:
    """One arm lately: its part of the decisions, the mean of the rewards reported for it."""

    arm: str
    share: float
    reward: float | None
    decisions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerRow:
    """What the ledger has booked so far."""

    spent_nanousd: int = 0
    transfers: int = 0
    decisions: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Everything a view shows."""

    elapsed_s: float
    duration_s: float
    sent: int
    decided: int
    rejected: int
    waiting: int
    in_flight: int
    settled: int
    decisions_per_s: float
    latency_p50_ms: float
    latency_p99_ms: float
    dead_letters: int
    dead_letters_expected: int
    ledger: LedgerRow
    budgets: Sequence[BudgetRow]
    arms: Sequence[ArmRow]
    story: Sequence[str]

    @property
    def reserved_nanousd(self) -> int:
        """Return the money in flight over all roots."""
        return sum(row.reserved_nanousd for row in self.budgets if "/" not in row.budget)


@dataclass(slots=True, kw_only=True)
class Measures:
    """Collects; every method takes the time at which something was seen, in seconds of the run.

    ``epoch_ms`` is the wall clock at second 0, by which the windows of budgets are placed.
    """

    arms: Sequence[str]
    windows: dict[str, str]
    duration_s: float
    epoch_ms: int = 0
    dead_letters: int = 0
    dead_letters_expected: int = 0
    ledger: LedgerRow = field(default_factory=LedgerRow)
    story: list[str] = field(default_factory=list)
    in_flight_seen: list[tuple[float, int]] = field(default_factory=list)
    latencies: list[tuple[float, float]] = field(default_factory=list)
    decided: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    settled: int = 0
    in_flight: int = 0
    _sent: dict[str, float] = field(default_factory=dict)
    _waiting: dict[str, float] = field(default_factory=dict)
    _newest: dict[str, float] = field(default_factory=dict)
    _recent: deque[tuple[float, str]] = field(default_factory=deque)
    _rewards: deque[tuple[float, str, float]] = field(default_factory=deque)
    _positions: dict[str, BudgetPosition] = field(default_factory=dict)

    def on_sent(self, request_id: str, at_s: float) -> None:
        """Note a request; one that its producer sends twice counts once."""
        if request_id not in self._sent:
            self._sent[request_id] = self._waiting[request_id] = at_s

    def on_decision(self, decision: Decision, at_s: float) -> None:
        """Note an effective decision."""
        sent_s = self._waiting.pop(decision.request_id, None)
        if sent_s is not None:
            self.latencies.append((sent_s, 1_000.0 * (at_s - sent_s)))
            root = decision.budget.partition("/")[0]
            self._newest[root] = max(sent_s, self.newest_decided_s(root))
        if decision.arm is None:
            self.rejected[decision.rejected or ""] += 1
        else:
            self.decided[decision.arm] += 1
            self._recent.append((at_s, decision.arm))
        for position in decision.budgets:
            self._positions[position.budget] = position

    def on_call(self, started: bool) -> None:
        """Note that a call began or ended."""
        self.in_flight += 1 if started else -1

    def on_outcome(self, arm: str, reward: float | None, at_s: float) -> None:
        """Note what was reported of a call."""
        self.settled += 1
        if reward is not None:
            self._rewards.append((at_s, arm, reward))

    @property
    def sent(self) -> int:
        """Return the number of requests."""
        return len(self._sent)

    @property
    def waiting(self) -> int:
        """Return how many requests have no decision yet."""
        return len(self._waiting)

    def newest_decided_s(self, root: str) -> float:
        """Return when the newest request of a root was sent that has a decision."""
        return self._newest.get(root, -1.0)

    def most_used(self, at_s: float) -> str:
        """Return the arm with the most traffic lately; the first arm before any."""
        counts = Counter(arm for when, arm in self._recent if when > at_s - RECENT_S / 2)
        return counts.most_common(1)[0][0] if counts else self.arms[0]

    def dual_price(self, budget: str) -> float:
        """Return a budget's λ at its last decision."""
        position = self._positions.get(budget)
        return 0.0 if position is None else position.dual_price

    def position(self, budget: str) -> BudgetPosition | None:
        """Return where a budget stood at its last decision."""
        return self._positions.get(budget)

    def share(self, arm: str, at_s: float) -> float:
        """Return an arm's part of the decisions lately."""
        self._forget(at_s)
        used = sum(1 for _, name in self._recent if name == arm)
        return used / max(len(self._recent), 1)

    def snapshot(self, at_s: float) -> Snapshot:
        """Return what there is to show now."""
        self._forget(at_s)
        self.in_flight_seen.append((at_s, self.in_flight))
        recent = [ms for sent_s, ms in self.latencies[-2_000:] if sent_s > at_s - 2 * RECENT_S]
        p50, p99 = percentiles(recent)
        return Snapshot(
            elapsed_s=at_s,
            duration_s=self.duration_s,
            sent=self.sent,
            decided=self.decided.total(),
            rejected=self.rejected.total(),
            waiting=self.waiting,
            in_flight=self.in_flight,
            settled=self.settled,
            decisions_per_s=len(self._recent) / max(min(RECENT_S, at_s), 1.0),
            latency_p50_ms=p50,
            latency_p99_ms=p99,
            dead_letters=self.dead_letters,
            dead_letters_expected=self.dead_letters_expected,
            ledger=self.ledger,
            budgets=[self._budget(p, at_s) for _, p in sorted(self._positions.items())],
            arms=self._arm_rows(),
            story=tuple(self.story),
        )

    def _budget(self, position: BudgetPosition, at_s: float) -> BudgetRow:
        now_ms = self.epoch_ms + round(1_000 * at_s)
        window = self.windows.get(position.budget, "total")
        settled, reserved = position.settled_nanousd, position.reserved_nanousd
        if window == "total":
            share = at_s / self.duration_s
        else:
            start = position.window_start_ms
            end = window_end_ms(window, start)
            share = (now_ms - start) / (end - start)
            if now_ms >= end:
                share, settled, reserved = 0.0, 0, 0
        return BudgetRow(
            budget=position.budget,
            limit_nanousd=position.limit_nanousd,
            settled_nanousd=settled,
            reserved_nanousd=reserved,
            dual_price=position.dual_price,
            plan_share=min(max(share, 0.0), 1.0),
        )

    def _arm_rows(self) -> list[ArmRow]:
        used = Counter(arm for _, arm in self._recent)
        rows = []
        for arm in self.arms:
            rewards = [reward for _, name, reward in self._rewards if name == arm]
            rows.append(
                ArmRow(
                    arm=arm,
                    share=used[arm] / max(len(self._recent), 1),
                    reward=float(np.mean(rewards)) if rewards else None,
                    decisions=self.decided[arm],
                )
            )
        return rows

    def _forget(self, at_s: float) -> None:
        while self._recent and self._recent[0][0] < at_s - RECENT_S:
            self._recent.popleft()
        while self._rewards and self._rewards[0][0] < at_s - RECENT_S:
            self._rewards.popleft()


def percentiles(values_ms: Sequence[float]) -> tuple[float, float]:
    """Return the median and the 99th percentile; zeros of nothing.

    Examples
    --------
    >>> percentiles([1.0, 2.0, 3.0]), percentiles([])
    ((2.0, 2.98), (0.0, 0.0))
    """
    if not values_ms:
        return 0.0, 0.0
    p50, p99 = np.percentile(np.array(values_ms), [50.0, 99.0])
    return float(p50), round(float(p99), 6)
