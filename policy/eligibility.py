"""Which arms a request may use at all, and for each other arm one word of why not."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from policy.requests import Constraints, Requests
from policy.state import State
from policy.terms import Bools

WHY_NOT = (
    "",
    "score",
    "unpriced",
    "undeployed",
    "not_allowed",
    "capability",
    "context",
    "latency",
    "cap",
    "ceiling",
    "policy",
)
"""Why an arm was not chosen, by code; the chosen arm has the empty word."""

(
    SCORE, UNPRICED, UNDEPLOYED, NOT_ALLOWED, CAPABILITY, CONTEXT, LATENCY, CAP, CEILING, POLICY,
) = range(1, len(WHY_NOT))  # fmt: skip
Codes = NDArray[np.int8]
_LATENCIES_MIN = 5
_UNLIMITED = np.iinfo(np.int64).max


def judge(state: State, batch: Requests, *, now_ms: int) -> tuple[Bools, Codes]:
    """Return which arms each request may use, and the codes of why not; both of shape (n, k)."""
    arms = state.catalog.arms
    base = np.full(len(arms), SCORE, np.int8)
    for column, arm in enumerate(arms):
        if not arm.deployed:
            base[column] = UNDEPLOYED
        elif arm.price is None:
            base[column] = UNPRICED
    why = np.repeat(base[None, :], len(batch), axis=0)
    if any(arm.context_tokens_max is not None for arm in arms):
        limits = np.array([_UNLIMITED if a.context_tokens_max is None else a.context_tokens_max
                           for a in arms], np.int64)  # fmt: skip
        tokens = batch.input_tokens + batch.max_output_tokens
        why[(tokens[:, None] > limits) & (why == SCORE)] = CONTEXT
    for row, constraints in batch.constraints.items():
        if constraints.on_arms:
            for column in range(len(arms)):
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
