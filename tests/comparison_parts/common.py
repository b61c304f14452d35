"""What the stand-ins are told and share: servers, limits, the one arm and its price."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from streams.ledger.database import connection_string
from tests.nemesis_parts.world import ARMS, PARTITIONS

__all__ = ["PARTITIONS"]

ARM = "small@a"
KAFKA = os.environ["TOLLWAY_KAFKA"]
DATABASE = connection_string(os.environ["TOLLWAY_DATABASE_URL"])
LIMITS: Mapping[str, int] = json.loads(os.environ["LIMITS"])
"""By budget root, nano-dollars."""


def decision_of(request: Mapping[str, Any], *, fits: bool) -> bytes:
    """Return the record that says that a call is made, or that the budget does not allow it."""
    price_in, price_out, _ = ARMS[ARM]
    decision = {
        "decision_id": request["request_id"],
        "request_id": request["request_id"],
        "budget": request["budget"],
        "arm": ARM if fits else None,
        "input_tokens": request["input_tokens"],
        "max_output_tokens": request["max_output_tokens"],
        "reserved_nanousd": bound_nanousd(request),
        "price": {"input": price_in, "output": price_out},
    }
    return json.dumps(decision).encode()


def bound_nanousd(request: Mapping[str, Any]) -> int:
    """Return the most that a call can cost."""
    return _price(request["input_tokens"], request["max_output_tokens"])


def cost_nanousd(usage: Mapping[str, int]) -> int:
    """Return what a call has cost."""
    return _price(usage["prompt_tokens"], usage["completion_tokens"])


def _price(tokens_in: int, tokens_out: int) -> int:
    price_in, price_out, _ = ARMS[ARM]
    return -(-(tokens_in * price_in + tokens_out * price_out) // 1_000)
