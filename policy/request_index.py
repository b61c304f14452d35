"""At which offset a request was decided, found by the digest of its id.

A dictionary of all digests would take as much as all else that is remembered of a decision: 120
bytes each. Here only the newest lie in one, and the others in arrays of 12 bytes a slot, which is
18 to 36 bytes each.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from policy.reservation_rows import NONE
from policy.terms import Bools, Ints

NEWEST = 1_024
"""Digests that come before they are moved into the arrays, together."""
WIDTH = 16
"""Slots of a bucket: their tags are one line of the processor's cache."""
_FULL = 11
"""Digests per bucket, on average, above which the buckets are doubled; then 1 in 100 finds its
bucket full."""
_BUCKETS_MIN = 64
_TAG_BITS = 32
_ONE_BY_ONE = 4
"""Digests up to which a loop is quicker than arrays."""


class RequestIndex:
    """Offsets by digest.

    A bucket is the row of a table. The first 32 bits of a digest are its tag, and the first bits
    of the tag number its bucket. No bucket has a tag twice, so that a tag leads to one offset at
    most: a candidate, because another digest may have that tag. The dictionary of the newest goes
    before the table, and a digest stays there if its bucket is full or has its tag already.
    """

    def __init__(self) -> None:
        self._newest: dict[bytes, int] = {}
        self._move_at = NEWEST
        # A free slot has the tag 0, which no digest has.
        self._tags: NDArray[np.uint32] = np.zeros((_BUCKETS_MIN, WIDTH), np.uint32)
        self._offsets: Ints = np.zeros((_BUCKETS_MIN, WIDTH), np.int64)
        self._shift = _TAG_BITS - (_BUCKETS_MIN.bit_length() - 1)
        self._moved = 0

    def __len__(self) -> int:
        return self._moved + len(self._newest)

    def candidate(self, id_: bytes) -> int:
        """Return the only offset at which a digest can be; ``NONE`` if it is unknown."""
        newest = self._newest.get(id_)
        if newest is not None:
            return newest
        tag = int.from_bytes(id_[:4], "little") | 1
        bucket = tag >> self._shift
        tags = self._tags[bucket].tolist()
        return self._offsets.item(bucket, tags.index(tag)) if tag in tags else NONE

    def candidates(self, ids: Sequence[bytes]) -> Ints:
        """Return :meth:`candidate` for each of these digests, shape (n,)."""
        if len(ids) <= _ONE_BY_ONE:
            return np.array([*map(self.candidate, ids)], np.int64)
        result = np.array([*map(self._newest.get, ids, [NONE] * len(ids))], np.int64)
        tags = _tags(ids)
        buckets = tags >> self._shift
        same = self._tags.take(buckets, axis=0) == tags[:, None]
        if np.count_nonzero(same):
            row, slot = same.nonzero()
            moved = result[row] == NONE
            row, slot = row[moved], slot[moved]
            result[row] = self._offsets[buckets[row], slot]
        return result

    def add(self, ids: Sequence[bytes], offsets: Ints) -> None:
        """Add digests, shape (n,); of a digest that was added before the new offset counts."""
        self._newest.update(zip(ids, offsets.tolist(), strict=True))
        if len(self._newest) >= self._move_at:
            self._move()

    def remove(self, ids: Sequence[bytes], offsets: Ints) -> None:
        """Remove digests, each if it is at this offset; shape (n,)."""
        for id_, offset in zip(ids, offsets.tolist(), strict=True):
            if self._newest.get(id_) == offset:
                del self._newest[id_]
        tags = _tags(ids)
        buckets = tags >> self._shift
        here = (self._tags[buckets] == tags[:, None]) & (self._offsets[buckets] == offsets[:, None])
        row, slot = here.nonzero()
        self._tags[buckets[row], slot] = 0
        self._moved -= len(row)

    def _move(self) -> None:
        """Move the newest into free slots of their buckets; those that find none stay."""
        while len(self) > _FULL * len(self._tags):
            self._double()
        ids = list(self._newest)
        offsets = np.fromiter(self._newest.values(), np.int64, len(ids))
        tags, left = _tags(ids), np.arange(len(ids))
        # Each turn fills one slot of a bucket; nearly all need no more than two.
        while len(left):
            fits = self._fill(tags[left], offsets[left])
            if not np.count_nonzero(fits):
                break
            left = left[~fits]
        self._moved += len(ids) - len(left)
        found = zip(left.tolist(), offsets[left].tolist(), strict=True)
        self._newest = {ids[row]: offset for row, offset in found}
        self._move_at = len(self._newest) + NEWEST

    def _fill(self, tags: NDArray[np.uint32], offsets: Ints) -> Bools:
        """Put digests into the first free slots of their buckets; return which are there, (n,)."""
        buckets = tags >> self._shift
        known = self._tags.take(buckets, axis=0)
        # The first slot of all if none is free.
        places = buckets * WIDTH + (known == 0).argmax(axis=1)
        every_tag, every_offset = self._tags.reshape(-1), self._offsets.reshape(-1)
        fits: Bools = every_tag[places] == 0
        same = known == tags[:, None]
        if np.count_nonzero(same):
            fits &= ~same.any(axis=1)
        row = fits.nonzero()[0]
        every_tag[places[row]], every_offset[places[row]] = tags[row], offsets[row]
        # Of those that chose the same slot the last one has it.
        fits &= every_offset[places] == offsets
        return fits

    def _double(self) -> None:
        """Divide each bucket into two by the next bit of its tags."""
        self._shift -= 1
        second = (self._tags >> self._shift) & 1 == 1
        halves = [np.where(second, 0, self._tags), np.where(second, self._tags, 0)]
        self._tags = np.stack(halves, axis=1).reshape(-1, WIDTH)
        self._offsets = self._offsets.repeat(2, axis=0)


def _tags(ids: Sequence[bytes]) -> NDArray[np.uint32]:
    """Return the tag of each digest, shape (n,)."""
    tags: NDArray[np.uint32] = np.frombuffer(b"".join(ids), "<u4")[::4] | np.uint32(1)
    return tags
