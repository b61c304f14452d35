"""Sliding windows of reward, cost, latency and errors per arm and segment, by event time.

A window is a ring of ``PANES`` time buckets of ``PANE_MS``; an event falls into the bucket of its
own time, an event older than the ring is left out. Reading sums the buckets that are still young
enough at the reader's time; nothing needs a timer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from policy.pages import Gate

PANES = 60
PANE_MS = 10_000

PANE_DTYPE = np.dtype(
    [
        ("number", "<i8"),  # pane since the epoch; an older pane in its place is overwritten
        ("calls", "<i8"),
        ("errors", "<i8"),
        ("cost_nanousd", "<i8"),
        ("latencies", "<i8"),
        ("latency_ms", "<i8"),
        ("rewards", "<i8"),
        ("reward", "<f8"),
    ]
)


class WindowSum(NamedTuple):
    """What a window holds; the means are None where nothing was counted."""

    calls: int
    errors: int
    cost_nanousd: int
    rewards: int
    reward_mean: float | None
    latency_ms_mean: float | None


class RewardWindows:
    """The sliding windows of one partition."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._rings: dict[tuple[str, str], NDArray[Any]] = {}

    def add(
        self, arm: str, segment: str, *, at_ms: int, reward: float | None = None,
        cost_nanousd: int | None = None, latency_ms: int | None = None, error: bool = False,
    ) -> None:  # fmt: skip
        """Count what one outcome brought."""
        if not self._gate.passes(("window", f"{arm} {segment}")):
            return
        ring = self._rings.get((arm, segment))
        if ring is None:
            ring = self._rings[arm, segment] = np.zeros(PANES, PANE_DTYPE)
        number = at_ms // PANE_MS
        pane = ring[number % PANES]
        if pane["number"] > number:
            return
        if pane["number"] < number:
            ring[number % PANES] = (number, 0, 0, 0, 0, 0, 0, 0.0)
        pane["errors"] += error
        if cost_nanousd is not None:
            pane["calls"] += 1
            pane["cost_nanousd"] += cost_nanousd
        if latency_ms is not None:
            pane["latencies"] += 1
            pane["latency_ms"] += latency_ms
        if reward is not None:
            pane["rewards"] += 1
            pane["reward"] += reward

    def read(self, arm: str, *, now_ms: int, segment: str | None = None) -> WindowSum:
        """Return the sums over the window that ends at ``now_ms``; all segments if None."""
        oldest = now_ms // PANE_MS - PANES
        rings = [
            ring
            for (ring_arm, ring_segment), ring in self._rings.items()
            if ring_arm == arm and segment in (None, ring_segment)
        ]
        if not rings:
            return WindowSum(0, 0, 0, 0, None, None)
        panes = np.concatenate(rings)
        panes = panes[panes["number"] > oldest]
        total = {name: panes[name].sum() for name in PANE_DTYPE.names or ()}
        return WindowSum(
            calls=int(total["calls"]),
            errors=int(total["errors"]),
            cost_nanousd=int(total["cost_nanousd"]),
            rewards=int(total["rewards"]),
            reward_mean=float(total["reward"] / total["rewards"]) if total["rewards"] else None,
            latency_ms_mean=(
                float(total["latency_ms"] / total["latencies"]) if total["latencies"] else None
            ),
        )

    def keys(self) -> Iterator[tuple[str, str]]:
        """Yield the arm and segment of every window."""
        yield from self._rings

    def dump_page(self, key: str) -> bytes:
        """Return one window as bytes."""
        arm, segment = key.split(" ")
        return self._rings[arm, segment].tobytes()

    def load_page(self, key: str, data: bytes) -> None:
        """Put a window back."""
        arm, segment = key.split(" ")
        self._rings[arm, segment] = np.frombuffer(data, PANE_DTYPE).copy()
