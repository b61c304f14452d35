"""Which arms a request may use at all, and for each other arm one word of why not."""

from __future__ import annotations

import numpy as np

from policy.requests import Constraints, Requests
from policy.state import State
from policy.terms import Bools
from policy.why_not import CAPABILITY, CONTEXT, LATENCY, NOT_ALLOWED, SCORE, Codes

_LATENCIES_MIN = 5


def judge(state: State, batch: Requests, *, now_ms: int) -> tuple[Bools, Codes]:
    """Return which arms each request may use, and the codes of why not; both of shape (n, k)."""
    columns = state.columns
    why = np.empty((len(batch), len(columns.why_not)), np.int8)
    why[:] = columns.why_not
    if columns.context_max is not None:
        tokens = batch.input_tokens + batch.max_output_tokens
        why[(tokens[:, None] > columns.context_max) & (why == SCORE)] = CONTEXT
    for row, constraints in batch.constraints.items():
        if constraints.on_arms:
            for column in range(len(columns.why_not)):
                if why[row, column] == SCORE:
                    why[row, column] = _constraint(state, constraints, column, now_ms=now_ms)
    return why == SCORE, why


def _constraint(state: State, request: Constraints, column: int, *, now_ms: int) -> int:
    arm = state.catalog.arms[column]
    if request.arms is not None and arm.arm not in request.arms:
        return NOT_ALLOWED
    if not request.capabilities <= arm.capabilities:
        return CAPABILITY
    if request.latency_ms_max is not None:
        window = state.windows.read(arm.arm, now_ms=now_ms)
        # An arm of unknown speed is tried: otherwise nothing would ever be known of it.
        slow = (window.latency_ms_mean or 0.0) > request.latency_ms_max
        if slow and window.calls >= _LATENCIES_MIN:
            return LATENCY
    return SCORE
