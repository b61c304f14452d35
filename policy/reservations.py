"""Every decision that is still remembered: what it holds, and what has become of it.

A row for each decision, in segments of ``SEGMENT`` consecutive offsets of the decisions partition,
so that a row's place is its decision's offset. Rows are found by request through a digest. A row
outlives its settlement: duplicates and conflicts are told by it. The oldest segments are dropped
once more than ``REMEMBERED`` decisions are kept and nothing in them is open.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from policy.money import Price
from policy.pages import Gate, PageKey
from policy.terms import Floats

SEGMENT = 1_024
REMEMBERED = 1 << 18
"""Decisions of one partition that are remembered at least; older requests are unknown."""

NONE = -1
_NEVER_MS = 1 << 62
ROW_DTYPE = np.dtype(
    [
        ("used", "u1"),
        ("explored", "u1"),
        ("arm", "<i2"),
        ("segment", "<i2"),
        ("budgets", "<i4"),
        ("input_tokens", "<i4"),
        ("id", "V16"),
        ("request_print", "<u8"),
        ("usage_print", "<u8"),
        ("reward_print", "<u8"),
        ("usage_offset", "<i8"),
        ("reward_offset", "<i8"),
        ("error_offset", "<i8"),
        ("expired_by", "<i8"),
        ("reserved", "<i8"),
        ("expected", "<i8"),
        ("decided_ms", "<i8"),
        ("expires_ms", "<i8"),
        ("price_version", "<i8"),
        ("price_input", "<i8"),
        ("price_output", "<i8"),
        ("price_cached", "<i8"),
    ]
)


class Row(NamedTuple):
    """A remembered decision; amounts in nano-dollars, offsets ``NONE`` where nothing came yet."""

    used: int
    explored: int
    arm: int
    segment: int
    budgets: int
    input_tokens: int
    id: bytes
    request_print: int
    usage_print: int
    reward_print: int
    usage_offset: int
    reward_offset: int
    error_offset: int
    expired_by: int
    reserved: int
    expected: int
    decided_ms: int
    expires_ms: int
    price_version: int
    price_input: int
    price_output: int
    price_cached: int

    @classmethod
    def decided(
        cls, *, explored: bool, arm: int, segment: int, budgets: int, input_tokens: int,
        request: bytes, request_print: int, reserved: int, expected: int, decided_ms: int,
        expires_ms: int, price: Price | None,
    ) -> Row:  # fmt: skip
        """Return the row of a new decision, of which nothing has become yet."""
        pinned = (0, 0, 0, NONE) if price is None else (
            price.version, price.input, price.output,
            NONE if price.cached is None else price.cached,
        )  # fmt: skip
        # By position, in the order of the fields: half the time of naming them.
        return cls(
            1, explored, arm, segment, budgets, input_tokens, request, request_print, 0, 0,
            NONE, NONE, NONE, NONE, reserved, expected, decided_ms, expires_ms, *pinned,
        )  # fmt: skip

    @property
    def is_open(self) -> bool:
        """Return whether the reservation is neither settled nor expired."""
        return self.arm != NONE and self.usage_offset == NONE and self.expired_by == NONE

    def price(self) -> Price:
        """Return the price that the decision pinned."""
        return Price(
            version=self.price_version,
            input=self.price_input,
            output=self.price_output,
            cached=None if self.price_cached == NONE else self.price_cached,
        )


class Names:
    """Texts by small numbers, in order of first use."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._numbers: dict[str, int] = {}

    def number(self, text: str) -> int:
        """Return the text's number; a new one if it has none."""
        found = self._numbers.get(text)
        if found is None:
            found = self._numbers[text] = len(self.texts)
            self.texts.append(text)
        return found


class Reservations:
    """The remembered decisions of one partition."""

    def __init__(self, gate: Gate, *, dimensions: int) -> None:
        self._gate = gate
        self._dimensions = dimensions
        self._rows: dict[int, NDArray[Any]] = {}
        self._features: dict[int, NDArray[np.float32]] = {}
        self._offsets: dict[bytes, int] = {}
        self._scan = 0
        self._alarm_ms = 0
        self.arms, self.budgets, self.segments = Names(), Names(), Names()
        self.open_count = 0

    def __len__(self) -> int:
        return len(self._offsets)

    def find(self, request: bytes) -> int | None:
        """Return the offset of the decision for this digest of a request id; None if unknown."""
        return self._offsets.get(request)

    def row(self, offset: int) -> Row:
        """Return the row of the decision at this offset."""
        return Row(*self._rows[offset // SEGMENT][offset % SEGMENT].item())

    def decided_since(self, offset: int, *, before: int) -> int:
        """Return how many decisions in ``[offset, before)`` took effect.

        Later copies of decisions do not count: who settled before they came has not seen them,
        and who folds the log has.
        """
        count = 0
        for number in range(offset // SEGMENT, -(-before // SEGMENT)):
            rows = self._rows.get(number)
            if rows is not None:
                start, end = max(offset - number * SEGMENT, 0), before - number * SEGMENT
                count += int(np.count_nonzero(rows["used"][start:end]))
        return count

    def features(self, offset: int) -> Floats:
        """Return the features with which the decision was made, shape (d,)."""
        features: Floats = self._features[offset // SEGMENT][offset % SEGMENT].astype(np.float64)
        return features

    def add(self, offset: int, row: Row, features: NDArray[np.float32]) -> None:
        """Remember a decision; nothing if the segment's page holds it already."""
        number = offset // SEGMENT
        if not self._gate.passes(page_of(offset)):
            return
        rows = self._rows.get(number)
        if rows is None:
            rows = self._rows[number] = np.zeros(SEGMENT, ROW_DTYPE)
            self._features[number] = np.zeros((SEGMENT, self._dimensions), np.float32)
        rows[offset % SEGMENT] = row
        self._features[number][offset % SEGMENT] = features
        self._offsets[row.id] = offset
        self._alarm_ms = min(self._alarm_ms, row.expires_ms)
        self.open_count += row.is_open

    def update(self, offset: int, row: Row, **fields: Any) -> None:
        """Change fields of a row, unless its page already holds the change."""
        if not self._gate.passes(page_of(offset)):
            return
        rows, place = self._rows[offset // SEGMENT], offset % SEGMENT
        for name, value in fields.items():
            rows[name][place] = value
        self.open_count += row._replace(**fields).is_open - row.is_open

    def due(self, now_ms: int) -> list[int]:
        """Return the offsets of open reservations that have expired before ``now_ms``, in order.

        Each is returned once; the caller marks them. Reservations expire in the order of their
        decisions: one with a shorter life than those before it waits for them.
        """
        # Asked at every record, and nothing is due almost every time.
        if now_ms <= self._alarm_ms:
            return []
        found: list[int] = []
        for number in sorted(self._rows):
            start = self._scan - number * SEGMENT
            if start >= SEGMENT:
                continue
            rows = self._rows[number]
            for place in np.flatnonzero(rows["used"][max(start, 0) :]) + max(start, 0):
                self._scan = number * SEGMENT + int(place)
                expires_ms = int(rows["expires_ms"][place])
                if now_ms <= expires_ms:
                    self._alarm_ms = expires_ms
                    return found
                if self.row(self._scan).is_open:
                    found.append(self._scan)
                self._scan += 1
        self._alarm_ms = _NEVER_MS
        return found

    def revive(self, offsets: list[int]) -> None:
        """Take the expiry of these reservations back, as if :meth:`due` had not been asked."""
        for offset in offsets:
            self.update(offset, self.row(offset), expired_by=NONE)
            self._scan = min(self._scan, offset)
        self._alarm_ms = 0

    def forget(self) -> list[PageKey]:
        """Drop the oldest segments beyond ``REMEMBERED`` that hold nothing open; return them."""
        dropped: list[PageKey] = []
        while len(self._offsets) > REMEMBERED:
            number = min(self._rows)
            rows = self._rows[number]
            used = rows["used"] == 1
            settled = (rows["usage_offset"] != NONE) | (rows["expired_by"] != NONE)
            if (used & (rows["arm"] != NONE) & ~settled).any():
                break
            for offset in np.flatnonzero(used) + number * SEGMENT:
                self._offsets.pop(rows["id"][offset % SEGMENT].tobytes(), None)
            del self._rows[number], self._features[number]
            dropped.append(("reservation", number))
        return dropped

    def expired_by(self) -> dict[int, list[int]]:
        """Return the remembered expiries: what caused them, and the decisions' offsets."""
        causes: dict[int, list[int]] = {}
        for number in sorted(self._rows):
            rows = self._rows[number]
            for place in np.flatnonzero((rows["used"] == 1) & (rows["expired_by"] != NONE)):
                cause = int(rows["expired_by"][place])
                causes.setdefault(cause, []).append(number * SEGMENT + int(place))
        return causes

    def pages(self) -> list[PageKey]:
        """Return the segments that are kept, oldest first."""
        return [("reservation", number) for number in sorted(self._rows)]

    def dump_page(self, number: int) -> bytes:
        """Return one segment as bytes."""
        rows = self._rows[number]
        used = rows["used"] == 1
        return msgspec.msgpack.encode(
            [
                np.flatnonzero(used).astype("<u2").tobytes(),
                rows[used].tobytes(),
                self._features[number][used].tobytes(),
                self.arms.texts,
                _named(self.budgets, rows["budgets"][used]),
                self.segments.texts,
            ]
        )

    def load_page(self, number: int, data: bytes) -> None:
        """Put a segment back."""
        self._alarm_ms = 0
        places, raw, features, arms, budgets, segments = msgspec.msgpack.decode(data)
        at = np.frombuffer(places, "<u2")
        loaded = np.frombuffer(raw, ROW_DTYPE).copy()
        for name, names, texts in (
            ("arm", self.arms, dict(enumerate(arms))),
            ("budgets", self.budgets, dict(budgets)),
            ("segment", self.segments, dict(enumerate(segments))),
        ):
            numbers = {old: names.number(text) for old, text in texts.items()}
            loaded[name] = [numbers.get(int(old), NONE) for old in loaded[name]]
        rows = self._rows[number] = np.zeros(SEGMENT, ROW_DTYPE)
        rows[at] = loaded
        self._features[number] = np.zeros((SEGMENT, self._dimensions), np.float32)
        kept = np.frombuffer(features, "<f4").reshape(len(at), -1)
        # Made with other features than the policy has now: their outcomes teach nothing.
        if kept.shape[1] == self._dimensions:
            self._features[number][at] = kept
        for place in at:
            row = Row(*rows[place].item())
            self._offsets[row.id] = number * SEGMENT + int(place)
            self.open_count += row.is_open


def page_of(offset: int) -> PageKey:
    """Return the page of the decision at this offset."""
    return ("reservation", offset // SEGMENT)


def _named(names: Names, numbers: NDArray[Any]) -> list[tuple[int, str]]:
    return [(int(n), names.texts[int(n)]) for n in np.unique(numbers)]
