"""Requests that wait for money in flight, in a queue for each budget."""

from __future__ import annotations

from collections import deque

from policy.requests import Incoming
from policy.state import State

RETRY_MAX = 64
"""Waiting requests of one budget that are tried again at a time."""


def take_due(state: State, now_ms: int) -> list[Incoming]:
    """Take those waiting requests out of their queues whose turn has come."""
    due: list[Incoming] = []
    for budget in list(state.deferred):
        queue = state.deferred[budget]
        oldest = queue[0]
        overdue = now_ms >= oldest.at_ms + state.limits.defer_ms or (
            oldest.deadline_ms is not None and now_ms > oldest.deadline_ms
        )
        if not overdue and not _shares_root(budget, state.freed):
            continue
        due.extend(queue.popleft() for _ in range(min(len(queue), RETRY_MAX)))
        if not queue:
            del state.deferred[budget]
    state.freed.clear()
    return sorted(due, key=lambda r: r.offset)


def _shares_root(budget: str, freed: set[str]) -> bool:
    root = budget.partition("/")[0]
    return any(other.partition("/")[0] == root for other in freed)


def wait(state: State, request: Incoming) -> None:
    """Let a request wait for money in flight; one that waited before keeps its place."""
    queue = state.deferred.setdefault(request.budget, deque())
    # One that waited before goes back before those that came after it.
    if request.id in state.waiting:
        place = next((i for i, r in enumerate(queue) if r.offset > request.offset), len(queue))
        queue.insert(place, request)
    else:
        queue.append(request)
    state.waiting[request.id] = request.request_print
