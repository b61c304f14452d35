"""What things weigh in a worker's state, by what Python and numpy have allocated for them."""

from __future__ import annotations

import gc
import tracemalloc

from policy.segments import SEGMENT
from streams.bench.core import HotPath
from streams.bench.workload import Workload

FEW_BUDGETS = 8
FEW_ARMS, MANY_ARMS = 10, 30
_CHUNK = 512


def bytes_per_thing(*, count: int, features: int) -> dict[str, float]:
    """Return bytes per idle budget, per open reservation, and per arm.

    Each is the difference between two states that differ only in the number of these things, all
    that is kept included: a budget's catalog entry, amounts, window and pacer; a reservation's row,
    the context that its outcome will teach from and the index by request; an arm's catalog entry,
    what is learned of it, and its windows.
    """
    # Whole segments: what is laid out in advance is not counted against the few.
    count = -(-count // SEGMENT) * SEGMENT
    _weigh(_CHUNK, Workload(arms=3, features=features), outcomes=True)
    few = Workload(arms=FEW_ARMS, features=features, budgets=FEW_BUDGETS)
    idle = _weigh(count, few, outcomes=True)
    budgets = Workload(arms=FEW_ARMS, features=features, budgets=count)
    arms = Workload(arms=MANY_ARMS, features=features, budgets=FEW_BUDGETS)
    waiting = _weigh(2 * count, few, outcomes=False) - _weigh(count, few, outcomes=False)
    return {
        "idle_budget": _each(_weigh(count, budgets, outcomes=True) - idle, count - FEW_BUDGETS),
        "open_reservation": _each(waiting, count),
        "arm": _each(_weigh(count, arms, outcomes=True) - idle, MANY_ARMS - FEW_ARMS),
    }


def _each(size: int, count: int) -> float:
    return round(size / count, 1)


def _weigh(requests: int, workload: Workload, *, outcomes: bool) -> int:
    """Return the bytes of the state, its catalog included, once so many requests were decided."""
    values = workload.requests(requests)
    settled = workload.outcomes(requests) if outcomes else []
    gc.collect()
    tracemalloc.start()
    try:
        path = HotPath(workload=workload)
        path.run(values, settled, chunk=_CHUNK)
        gc.collect()
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return size
