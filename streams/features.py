"""Features of requests, as numbers, as packed numbers or from a prompt, into one array."""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import starmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy.terms import Bools
from streams.records import BadRecordError, Request

Encode = Callable[[Sequence[str]], NDArray[Any]]
FEATURE_MAX = 1e6
"""Largest absolute value of a feature: beyond it sums of squares lose their digits."""


@dataclass(slots=True)
class Features:
    """Gathers the features of requests, of each kind together."""

    wanted: int
    encode: Encode | None
    known: bool
    _size: int = 0
    _rows: list[int] = field(default_factory=list)
    _numbers: list[Sequence[float]] = field(default_factory=list)
    _packed: list[tuple[int, bytes]] = field(default_factory=list)
    _prompts: list[tuple[int, str]] = field(default_factory=list)

    def add_all(self, requests: Sequence[Request]) -> dict[int, BadRecordError]:
        """Check the features of requests and keep them for the next rows.

        Return what is wrong with which of them, by their place; those have no row.
        """
        numbers = [request.features for request in requests]
        if (
            None not in numbers
            and set(map(len, numbers)) <= {self.wanted}  # type: ignore[arg-type]
            and all(r.prompt is None and r.features_b64 is None for r in requests)
        ):
            # Almost always all are numbers, and as many as there must be.
            self._rows += range(self._size, self._size + len(numbers))
            self._numbers += numbers  # type: ignore[arg-type]
            self._size += len(numbers)
            return {}
        wrong = {}
        for place, request in enumerate(requests):
            try:
                self._add(request)
            except BadRecordError as exc:
                wrong[place] = exc
        return wrong

    def _add(self, request: Request) -> None:
        prompt, numbers, packed = request.prompt, request.features, request.features_b64
        if (prompt is None) + (numbers is None) + (packed is None) != 2:
            raise BadRecordError("features", "give one of prompt, features, features_b64")
        if numbers is not None:
            if len(numbers) == self.wanted or self._fits(len(numbers)):
                self._rows.append(self._size)
                self._numbers.append(numbers)
        elif prompt is not None:
            self._add_prompt(prompt)
        else:
            raw = _from_base64(packed or "")
            if self._fits(len(raw) // 4):
                self._packed.append((self._size, raw))
        self._size += 1

    def _add_prompt(self, prompt: str) -> None:
        if "\0" in prompt:
            raise BadRecordError("nul", "the prompt contains a NUL character")
        if self.encode is None:
            raise BadRecordError("features", "a prompt, but the catalog's encoder is none")
        self._prompts.append((self._size, prompt))

    def _fits(self, length: int) -> bool:
        if length != self.wanted and not self.known:
            raise BadRecordError("feature_length", f"{length} features, not {self.wanted}")
        # Decided when the policy had other features: its outcome teaches nothing.
        return length == self.wanted

    def matrix(self) -> tuple[NDArray[np.float32], Bools]:
        """Return the features with the constant, shape (n, d), and which rows are in range."""
        matrix = np.zeros((self._size, self.wanted + 1), np.float32)
        matrix[:, -1] = 1.0
        with np.errstate(over="ignore"):
            if self._numbers:
                # Half the time of making an array of lists.
                packed_rows = starmap(struct.Struct(f"{self.wanted}d").pack, self._numbers)
                matrix[self._rows, :-1] = np.frombuffer(b"".join(packed_rows)).reshape(
                    len(self._rows), -1
                )
            if self._packed:
                rows, packed = zip(*self._packed, strict=True)
                matrix[list(rows), :-1] = np.frombuffer(b"".join(packed), "<f4").reshape(
                    len(rows), -1
                )
            if self._prompts and self.encode is not None:
                rows, prompts = zip(*self._prompts, strict=True)
                matrix[list(rows), :-1] = self._encoded(self.encode(prompts))
        # False for what is not a number, too.
        finite: Bools = np.logical_and.reduce(np.abs(matrix) <= FEATURE_MAX, axis=1)
        return matrix, finite

    def _encoded(self, features: NDArray[Any]) -> NDArray[Any]:
        if features.shape[1] == self.wanted:
            return features
        if self.known:
            return np.zeros((len(features), self.wanted))
        raise ValueError(f"the encoder gives {features.shape[1]} features, not {self.wanted}")


def _from_base64(text: str) -> bytes:
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise BadRecordError("features", "features_b64 is not base64") from None
    if len(raw) % 4:
        raise BadRecordError("features", f"features_b64 holds {len(raw)} bytes, not float32")
    return raw
