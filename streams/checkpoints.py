"""What is written to the tables: pages by their keys, and the position to fold from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

import msgspec

from policy.pages import LEARNED, PageKey, Position
from policy.recover import page_position
from streams.failpoints import pass_point
from streams.log import LogError

POSITION_KEY = b"position"
POSITION_TABLE = "budget-pacing"
TABLE_OF = {
    "budget": "budget-pacing",
    "window": "reward-windows",
    "arm": "arm-statistics",
    "learned": "arm-statistics",
    "ring": "arm-statistics",
    "reservation": "reservations",
}
"""The table of each kind of page."""
FORMAT = 5
"""Of the pages. Pages of another format are left alone: the state comes from the topics then."""


PART_BYTES = 700_000
_PART = b"learned:"


class Kept(msgspec.Struct, array_like=True):
    """What is kept beside the pages: where to fold from."""

    decisions: int
    outcomes: int
    clock_ms: int
    format: int
    topics: list[bytes] = []
    """Ids of the logs that the pages follow from (``streams.topic_facts.LOGS``)."""
    learned: tuple[int, int] = (0, 0)
    """Which writing of the page of all arms counts, and in how many parts it lies."""

    @property
    def position(self) -> Position:
        """Return where to fold from."""
        return Position(self.decisions, self.outcomes, self.clock_ms)


class Table(Protocol):
    """What a checkpoint table offers."""

    async def put(self, partition: int, values: Mapping[bytes, bytes | None]) -> None:
        """Write values durably."""


async def write_pages(
    tables: Mapping[str, Table],
    partition: int,
    pages: Mapping[PageKey, bytes],
    forgotten: Iterable[PageKey],
    learned: tuple[int, int] = (0, 0),
) -> tuple[int, int]:
    """Write pages, and delete those that are forgotten; returns when all is durable.

    The page of all arms may be larger than a record. It is written in parts, beside its last
    writing, and counts once the position names it: ``learned`` is what the position names now, and
    what it is to name from now on is returned.
    """
    by_table: dict[str, dict[bytes, bytes | None]] = {}
    for page, data in pages.items():
        parts = by_table.setdefault(TABLE_OF[page[0]], {})
        if page == LEARNED:
            slices = [data[at : at + PART_BYTES] for at in range(0, len(data), PART_BYTES)]
            learned = (1 - learned[0], len(slices))
            parts |= {_part_key(learned[0], n): part for n, part in enumerate(slices)}
        else:
            parts[page_key(page)] = data
    for page in forgotten:
        by_table.setdefault(TABLE_OF[page[0]], {})[page_key(page)] = None
    for table, values in by_table.items():
        await tables[table].put(partition, values)
        pass_point("worker.between_pages")
    return learned


def whole_pages(values: Mapping[bytes, bytes], kept: Kept) -> dict[PageKey, bytes]:
    """Return the pages that these values of all tables hold, without the position."""
    writing, count = kept.learned
    parts = [values.get(_part_key(writing, number)) for number in range(count)]
    if count and None in parts:
        raise LogError(f"part {parts.index(None)} of {count} of what was learned is missing")
    pages = {
        parse_page_key(key): value
        for key, value in values.items()
        if key != POSITION_KEY and not key.startswith(_PART)
    }
    if count:
        pages[LEARNED] = b"".join(part or b"" for part in parts)
    return pages


def _part_key(writing: int, number: int) -> bytes:
    return b"%s%d:%d" % (_PART, writing, number)


async def write_position(tables: Mapping[str, Table], partition: int, kept: Kept) -> None:
    """Write the position; only after the pages that it relies on."""
    await tables[POSITION_TABLE].put(partition, {POSITION_KEY: msgspec.msgpack.encode(kept)})


def read_position(key: bytes, value: bytes) -> Position:
    """Return where to fold from so that this value, page or position, may be relied on."""
    if key.startswith(_PART):
        # A part by itself says nothing; if the position names it, it will be missed.
        return Position(*[1 << 62] * 3)
    if key == POSITION_KEY:
        return msgspec.msgpack.decode(value, type=Kept).position
    return page_position(value)


def page_key(page: PageKey) -> bytes:
    """Return a page's key in its table."""
    return f"{page[0]}:{page[1]}".encode()


def parse_page_key(key: bytes) -> PageKey:
    """Return the page of a key."""
    kind, _, name = key.decode().partition(":")
    return (kind, int(name) if kind in ("budget", "reservation") else name)
