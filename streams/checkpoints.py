"""What is written to the tables: pages by their keys, and the position to fold from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

import msgspec

from policy.pages import PageKey, Position
from policy.recover import page_position

POSITION_KEY = b"position"
POSITION_TABLE = "budget-pacing"
TABLE_OF = {
    "budget": "budget-pacing",
    "window": "reward-windows",
    "arm": "arm-statistics",
    "ring": "arm-statistics",
    "reservation": "reservations",
}
"""The table of each kind of page."""
FORMAT = 2
"""Of the pages. Pages of another format are left alone: the state comes from the topics then."""


class Kept(msgspec.Struct, array_like=True):
    """What is kept beside the pages: where to fold from."""

    decisions: int
    outcomes: int
    clock_ms: int
    format: int
    topics: list[bytes] = []
    """Ids of the logs that the pages follow from (``streams.topic_facts.LOGS``)."""

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
) -> None:
    """Write pages, and delete those that are forgotten; returns when all is durable."""
    by_table: dict[str, dict[bytes, bytes | None]] = {}
    for page, data in pages.items():
        by_table.setdefault(TABLE_OF[page[0]], {})[page_key(page)] = data
    for page in forgotten:
        by_table.setdefault(TABLE_OF[page[0]], {})[page_key(page)] = None
    for table, values in by_table.items():
        await tables[table].put(partition, values)


async def write_position(tables: Mapping[str, Table], partition: int, kept: Kept) -> None:
    """Write the position; only after the pages that it relies on."""
    await tables[POSITION_TABLE].put(partition, {POSITION_KEY: msgspec.msgpack.encode(kept)})


def read_position(key: bytes, value: bytes) -> Position:
    """Return where to fold from so that this value, page or position, may be relied on."""
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
