"""From records of topics to what the core takes: checked, hashed, with features."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy.catalog import Catalog
from policy.state import Arrival, Incoming
from streams.records import BadRecordError, Outcome, Request, decode, request_digest

Encode = Callable[[Sequence[str]], NDArray[Any]]
FEATURE_MAX = 1e6
"""Largest absolute value of a feature: beyond it sums of squares lose their digits."""


@dataclass(frozen=True, slots=True)
class Intake:
    """Reads requests and outcomes against one version of the catalog."""

    catalog: Catalog
    encode: Encode | None

    def request(
        self, key: bytes | None, value: bytes | None, *, offset: int, at_ms: int,
        known: bool = False,
    ) -> Incoming:  # fmt: skip
        """Return the request, or raise :class:`BadRecordError` with the reason.

        ``at_ms`` is the record's timestamp, by the broker. With ``known`` it was accepted under a
        former catalog, whatever the present one says.
        """
        request = decode(Request, value)
        root = request.budget.partition("/")[0]
        _check_key(key, root)
        if not known and request.budget not in self.catalog.budgets:
            raise BadRecordError("unknown_budget", f"budget {request.budget!r} is not declared")
        if request.arms is not None and not known:
            self._check_arms(request.arms)
        identity = request_digest(root, request.request_id)
        assert value is not None
        return Incoming(
            offset=offset,
            id=identity,
            request_print=_print(value),
            budget=request.budget,
            features=self._features(request, known=known),
            input_tokens=request.input_tokens,
            max_output_tokens=request.max_output_tokens,
            at_ms=at_ms,
            seed=int.from_bytes(identity[:8], "little") ^ self.catalog.settings.seed,
            segment=self._segment(request.segment),
            arms=None if request.arms is None else frozenset(request.arms),
            capabilities=frozenset(request.capabilities),
            latency_ms_max=request.latency_ms_max,
            deadline_ms=request.deadline_ms,
            name=request.request_id,
        )

    def _segment(self, name: str) -> str:
        return name if name == "all" or name in self.catalog.settings.segments else "other"

    def _check_arms(self, names: list[str]) -> None:
        declared = {arm.arm for arm in self.catalog.arms}
        for name in names:
            if name not in declared:
                raise BadRecordError("unknown_arm", f"arm {name!r} is not in the catalog")

    def _features(self, request: Request, *, known: bool) -> NDArray[np.float32]:
        values = self._values(request)
        wanted = self.catalog.settings.dimensions
        if len(values) != wanted:
            if not known:
                raise BadRecordError("feature_length", f"{len(values)} features, not {wanted}")
            # Decided when the policy had other features: its outcome teaches nothing.
            values = [0.0] * wanted
        # Python's max of a short list is several times faster than numpy's.
        if not -FEATURE_MAX <= min(values) <= max(values) <= FEATURE_MAX:
            raise BadRecordError("range", f"a feature is not within ±{FEATURE_MAX:g}")
        return np.array([*values, 1.0], np.float32)

    def _values(self, request: Request) -> list[float]:
        prompt, features, packed = request.prompt, request.features, request.features_b64
        if (prompt is None) + (features is None) + (packed is None) != 2:
            raise BadRecordError("features", "give one of prompt, features, features_b64")
        if features is not None:
            return features
        return self._encoded(prompt) if prompt is not None else _from_base64(packed or "")

    def _encoded(self, prompt: str) -> list[float]:
        if "\0" in prompt:
            raise BadRecordError("nul", "the prompt contains a NUL character")
        if self.encode is None:
            raise BadRecordError("features", "a prompt, but the catalog's encoder is none")
        values: list[float] = self.encode([prompt])[0].tolist()
        return values

    def outcome(
        self, key: bytes | None, value: bytes | None, *, offset: int, at_ms: int
    ) -> Arrival:
        """Return the outcome, or raise :class:`BadRecordError` with the reason."""
        outcome = decode(Outcome, value)
        root = _root(key)
        usage = outcome.usage
        if usage is not None and usage.cached_tokens > usage.prompt_tokens:
            raise BadRecordError("range", "more cached_tokens than prompt_tokens")
        identity = request_digest(root, outcome.request_id)
        if outcome.decision_id not in (None, identity.hex()):
            raise BadRecordError("other_decision", "decision_id is not that of the request")
        parts = (usage, outcome.cost_nanousd, outcome.reward, outcome.error)
        if all(part is None for part in parts):
            raise BadRecordError("empty_outcome", "no usage, cost, reward or error")
        tokens = (
            (None, None, None)
            if usage is None
            else (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)
        )
        compared = outcome.against is not None
        judged = (outcome.reward, outcome.against) if compared else outcome.reward
        return Arrival(
            offset=offset,
            id=identity,
            at_ms=at_ms,
            input_tokens=tokens[0],
            output_tokens=tokens[1],
            cached_tokens=tokens[2] or 0,
            cost_nanousd=outcome.cost_nanousd,
            usage_print=_print(repr((*tokens, outcome.cost_nanousd)).encode()),
            reward=outcome.reward,
            reward_print=_print(repr(judged).encode()),
            latency_ms=outcome.latency_ms,
            error=outcome.error is not None,
            against=outcome.against,
        )


def _print(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def _root(key: bytes | None) -> str:
    try:
        return (key or b"").decode()
    except UnicodeDecodeError:
        return ""


def _check_key(key: bytes | None, root: str) -> None:
    if _root(key) != root:
        raise BadRecordError("wrong_key", f"the record's key is not the budget's root {root!r}")


def _from_base64(text: str) -> list[float]:
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise BadRecordError("features", "features_b64 is not base64") from None
    if len(raw) % 4:
        raise BadRecordError("features", f"features_b64 holds {len(raw)} bytes, not float32")
    values: list[float] = np.frombuffer(raw, "<f4").tolist()
    if any(value != value for value in values):
        raise BadRecordError("range", "a feature is not a number")
    return values
