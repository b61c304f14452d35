"""Sliding windows of reward, cost, latency and errors per arm and segment, by event time.

A window holds the last ``PANES`` time buckets of ``PANE_MS``; an event falls into the bucket of
its own time, an event older than all of them is left out. Reading sums the buckets that are still
young enough at the reader's time; nothing needs a timer.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

from policy.money import INT64_MAX
from policy.pages import Gate
from policy.terms import Bools, Floats, Ints

PANES = 60
PANE_MS = 10_000

PANE_DTYPE = np.dtype(
    [
        ("number", "<i8"),  # pane since the epoch
        ("calls", "<i8"),
        ("errors", "<i8"),
        ("cost_nanousd", "<i8"),
        ("latencies", "<i8"),
        ("latency_ms", "<i8"),
        ("rewards", "<i8"),
        ("reward", "<f8"),
    ]
)

_FIELDS = PANE_DTYPE.names or ()
_CALLS, _ERRORS, _COST, _LATENCIES, _LATENCY, _REWARDS, _REWARD = range(1, len(_FIELDS))


class WindowSum(NamedTuple):
    """What a window holds; the means are None where nothing was counted."""

    calls: int
    errors: int
    cost_nanousd: int
    rewards: int
    reward_mean: float | None
    latency_ms_mean: float | None


class RewardWindows:
    """The sliding windows of one partition.

    A window is a dictionary from pane number to the pane's fields, as plain numbers: they are
    changed at each outcome, and numpy's fields cost ten times as much to change.
    """

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._windows: dict[tuple[str, str], dict[int, list[Any]]] = {}

    def add(
        self, arm: str, segment: str, *, at_ms: Ints, reward: Floats, cost_nanousd: Ints,
        latency_ms: Ints, error: Bools,
    ) -> None:  # fmt: skip
        """Count what outcomes brought, in their order; all arrays of shape (n,).

        ``reward`` is nan, ``cost_nanousd`` and ``latency_ms`` are negative where they are unknown.
        """
        if not self._gate.passes(("window", f"{arm} {segment}")):
            return
        window = self._windows.setdefault((arm, segment), {})
        # Plain numbers: there are few of one window in a batch, and arrays cost more to begin.
        costs, latencies = cost_nanousd.tolist(), latency_ms.tolist()
        rewards, errors = reward.tolist(), error.tolist()
        end = 0
        for number, same in groupby((at_ms // PANE_MS).tolist()):
            part = slice(end, end + sum(1 for _ in same))
            end = part.stop
            pane = _pane(window, number)
            if pane is None:
                continue
            cost = [value for value in costs[part] if value >= 0]
            latency = [value for value in latencies[part] if value >= 0]
            known = [value for value in rewards[part] if value == value]
            pane[_ERRORS] += sum(errors[part])
            pane[_CALLS] += len(cost)
            # For looking at, not for money: absurd bills must not pass what a page can hold.
            pane[_COST] = min(pane[_COST] + sum(cost), INT64_MAX)
            pane[_LATENCIES] += len(latency)
            pane[_LATENCY] += sum(latency)
            pane[_REWARDS] += len(known)
            # One by one, in order: the sum must not depend on how outcomes were batched.
            for value in known:
                pane[_REWARD] += value

    def read(self, arm: str, *, now_ms: int, segment: str | None = None) -> WindowSum:
        """Return the sums over the window that ends at ``now_ms``; all segments if None."""
        oldest = now_ms // PANE_MS - PANES
        panes = [
            pane
            for (window_arm, window_segment), window in self._windows.items()
            if window_arm == arm and segment in (None, window_segment)
            for number, pane in window.items()
            if number > oldest
        ]
        total = [sum(column) for column in zip(*panes, strict=True)] or [0] * len(_FIELDS)
        rewards, latencies = total[_REWARDS], total[_LATENCIES]
        return WindowSum(
            calls=total[_CALLS],
            errors=total[_ERRORS],
            cost_nanousd=total[_COST],
            rewards=rewards,
            reward_mean=total[_REWARD] / rewards if rewards else None,
            latency_ms_mean=total[_LATENCY] / latencies if latencies else None,
        )

    def keys(self) -> Iterator[tuple[str, str]]:
        """Yield the arm and segment of every window."""
        yield from self._windows

    def dump_page(self, key: str) -> bytes:
        """Return one window as bytes."""
        arm, segment = key.split(" ")
        window = self._windows[arm, segment]
        panes = [tuple(window[number]) for number in sorted(window)]
        return np.array(panes, PANE_DTYPE).tobytes()

    def load_page(self, key: str, data: bytes) -> None:
        """Put a window back."""
        arm, segment = key.split(" ")
        panes = [list(pane) for pane in np.frombuffer(data, PANE_DTYPE).tolist()]
        self._windows[arm, segment] = {pane[0]: pane for pane in panes}


def _pane(window: dict[int, list[Any]], number: int) -> list[Any] | None:
    """Return the pane of this number; None if it is older than the window."""
    pane = window.get(number)
    if pane is None:
        newest = max(window, default=number)
        if number <= newest - PANES:
            return None
        pane = window[number] = [number, 0, 0, 0, 0, 0, 0, 0.0]
        for old in [n for n in window if n <= max(newest, number) - PANES]:
            del window[old]
    return pane
