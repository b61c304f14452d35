"""Every decision that is still remembered: what it holds, and what has become of it.

A row for each decision, in segments of ``SEGMENT`` consecutive offsets of the decisions partition,
so that a row's place is its decision's offset. Rows are found by request through a digest. A row
outlives its settlement: duplicates and conflicts are told by it. The oldest segments are dropped
once more than ``REMEMBERED`` decisions are kept and nothing in them is open.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from policy.names import Names, renumbered
from policy.pages import Gate, PageKey
from policy.paths import Paths
from policy.request_index import RequestIndex
from policy.reservation_rows import ID_DTYPE, NONE, ROW_DTYPE, UNKNOWN_ROW, Row, is_open
from policy.segments import SEGMENT, by_segment, used_before, used_between
from policy.structured import put_rows, rows_at
from policy.terms import Floats, Ints

REMEMBERED = 1 << 18
"""Decisions of one partition that are remembered at least; older requests are unknown."""

_NEVER_MS = 1 << 62
_FEW = 4
"""Decisions up to which those made since are counted for each alone."""
_CLOSING = frozenset({"usage_offset", "expired_by"})
"""Fields on which it depends whether a reservation is open."""


class Reservations:
    """The remembered decisions of one partition."""

    def __init__(self, gate: Gate, paths: Paths, *, dimensions: int) -> None:
        self._gate = gate
        self._paths = paths
        self._dimensions = dimensions
        self._rows: dict[int, NDArray[Any]] = {}
        self._features: dict[int, NDArray[np.float32]] = {}
        self._index = RequestIndex()
        self._scan = 0
        self._alarm_ms = 0
        self.arms, self.segments = Names(), Names()
        self.open_count = 0

    def __len__(self) -> int:
        return len(self._index)

    def find(self, request: bytes) -> int | None:
        """Return the offset of the decision for this digest of a request id; None if unknown."""
        offset = self._index.candidate(request)
        return None if offset == NONE or self._id_at(offset) != request else offset

    def row(self, offset: int) -> Row:
        """Return the row of the decision at this offset."""
        return Row(*self._rows[offset // SEGMENT][offset % SEGMENT].item())

    def find_all(self, requests: Sequence[bytes]) -> Ints:
        """Return :meth:`find` for each of these digests, shape (n,); ``NONE`` if unknown."""
        offsets = self._index.candidates(requests)
        # Hardly any request comes twice.
        for row in (offsets != NONE).nonzero()[0].tolist():
            if self._id_at(offsets.item(row)) != requests[row]:
                offsets[row] = NONE
        return offsets

    def decisions(self, requests: Sequence[bytes], *, before: int) -> tuple[Ints, NDArray[Any]]:
        """Return the offsets of the decisions for these digests, and copies of their rows; (n,).

        Where a decision is not known or not below ``before``, the offset is ``NONE`` and the row
        is that of :meth:`rows`.
        """
        offsets = self._index.candidates(requests)
        offsets[offsets >= before] = NONE
        rows = self.rows(offsets)
        other = (rows["id"] != np.frombuffer(b"".join(requests), ID_DTYPE)) & (offsets != NONE)
        if np.count_nonzero(other):
            offsets[other] = NONE
            rows[other] = UNKNOWN_ROW
        return offsets, rows

    def rows(self, offsets: Ints) -> NDArray[Any]:
        """Return copies of the rows of the decisions at these offsets, shape (n,).

        At a negative offset, of a decision that is not known, is a row of an arm ``NONE``.
        """
        parts = by_segment(offsets)
        if len(parts) == 1 and parts[0][0] >= 0:
            number = parts[0][0]
            return rows_at(self._rows[number], offsets - number * SEGMENT)
        found = np.empty(len(offsets), ROW_DTYPE)
        for number, part in parts:
            if number >= 0:
                mine = rows_at(self._rows[number], offsets[part] - number * SEGMENT)
                put_rows(found, part, mine)
            else:
                found[part] = UNKNOWN_ROW
        return found

    def decided_since(self, offsets: Ints, *, before: int) -> Ints:
        """Return for each offset how many decisions in ``[offset, before)`` took effect.

        Later copies of decisions do not count: who settled before they came has not seen them,
        and who folds the log has.
        """
        if len(offsets) <= _FEW:
            return used_between(self._rows, offsets, before)
        first, last = int(offsets.min()) // SEGMENT, -(-before // SEGMENT)
        # What lies before each place of a segment, and before each segment.
        counts = {n: used_before(self._rows.get(n), before - n * SEGMENT)
                  for n in range(first, last)}  # fmt: skip
        totals = np.cumsum([0, *(int(counts[n][-1]) for n in range(first, last))])
        result = np.full(len(offsets), totals[-1], np.int64)
        for number, part in by_segment(offsets):
            if number < last:
                places = offsets[part] - number * SEGMENT
                result[part] -= totals[number - first] + counts[number][places]
            else:
                result[part] = 0
        return result

    def features(self, offsets: Ints) -> Floats:
        """Return the features with which decisions were made, shape (n, d)."""
        found = np.empty((len(offsets), self._dimensions))
        for number, part in by_segment(offsets):
            found[part] = self._features[number][offsets[part] - number * SEGMENT]
        return found

    def add(
        self, offsets: Ints, rows: NDArray[Any], ids: Sequence[bytes],
        features: NDArray[np.float32],
    ) -> None:  # fmt: skip
        """Remember decisions at ascending offsets; not in a segment whose page holds them."""
        for number, part in by_segment(offsets):
            if not self._gate.passes(("reservation", number)):
                continue
            kept = self._rows.get(number)
            if kept is None:
                kept = self._rows[number] = np.zeros(SEGMENT, ROW_DTYPE)
                self._features[number] = np.zeros((SEGMENT, self._dimensions), np.float32)
            places = offsets[part] - number * SEGMENT
            put_rows(kept, places, rows[part])
            self._features[number][places] = features[part]
            self._index.add(ids[part], offsets[part])
            self.open_count += int(np.count_nonzero(is_open(rows[part])))
        if len(rows):
            self._alarm_ms = min(self._alarm_ms, int(rows["expires_ms"].min()))

    def change(self, offsets: Ints, **fields: NDArray[Any] | int) -> None:
        """Change fields of rows, unless their page already holds the change."""
        for number, part in by_segment(offsets):
            if not self._gate.passes(("reservation", number)):
                continue
            rows, places = self._rows[number], offsets[part] - number * SEGMENT
            counts = not _CLOSING.isdisjoint(fields)
            before = np.count_nonzero(is_open(rows, places)) if counts else 0
            for name, value in fields.items():
                rows[name][places] = value if isinstance(value, int) else value[part]
            if counts:
                self.open_count += int(np.count_nonzero(is_open(rows, places)) - before)

    @property
    def alarm_ms(self) -> int:
        """Return the time until which :meth:`due` returns nothing."""
        return self._alarm_ms

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
        if offsets:
            self.change(np.array(offsets, np.int64), expired_by=NONE)
            self._scan = min(self._scan, *offsets)
        self._alarm_ms = 0

    def forget(self) -> list[PageKey]:
        """Drop the oldest segments beyond ``REMEMBERED`` that hold nothing open; return them."""
        dropped: list[PageKey] = []
        while len(self._index) > REMEMBERED:
            number = min(self._rows)
            rows = self._rows[number]
            used = rows["used"] == 1
            if (used & is_open(rows)).any():
                break
            places = np.flatnonzero(used)
            self._index.remove(_ids(rows[places]), places + number * SEGMENT)
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
                rows_at(rows, used).tobytes(),
                self._features[number][used].tobytes(),
                self.arms.texts,
                [(int(n), self._paths.texts[int(n)]) for n in np.unique(rows["budgets"][used])],
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
            ("budgets", self._paths, dict(budgets)),
            ("segment", self.segments, dict(enumerate(segments))),
        ):
            loaded[name] = renumbered(loaded[name], texts, names.numbers([*texts.values()]))
        rows = self._rows[number] = np.zeros(SEGMENT, ROW_DTYPE)
        put_rows(rows, at, loaded)
        self._features[number] = np.zeros((SEGMENT, self._dimensions), np.float32)
        kept = np.frombuffer(features, "<f4").reshape(len(at), -1)
        # Made with other features than the policy has now: their outcomes teach nothing.
        if kept.shape[1] == self._dimensions:
            self._features[number][at] = kept
        self._index.add(_ids(loaded), at.astype(np.int64) + number * SEGMENT)
        self.open_count += int(np.count_nonzero(is_open(loaded)))

    def _id_at(self, offset: int) -> bytes:
        id_: bytes = self._rows[offset // SEGMENT]["id"][offset % SEGMENT].tobytes()
        return id_


def _ids(rows: NDArray[Any]) -> list[bytes]:
    """Return the digests of rows."""
    ids: list[bytes] = rows["id"].tolist()
    return ids
