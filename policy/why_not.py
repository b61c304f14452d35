"""Why an arm was not chosen: one word for each reason, and its code."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

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
