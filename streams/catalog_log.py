"""Reads the catalog's topic: what holds now, and what held up to an offset."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from policy.catalog import Catalog
from streams import topics
from streams.following import apply_entry, entry_key, remove_entry
from streams.log import LogReader
from streams.records import BadRecordError, CatalogEntry, PriceEntry, decode_catalog


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """An entry that holds, and where it was written."""

    entry: CatalogEntry
    offset: int
    at_ms: int


@dataclass(slots=True, kw_only=True)
class CatalogLog:
    """The topic, read from its begin.

    ``listed`` are the entries that hold, by key; ``versions`` the highest price version that any
    record of an arm had; ``refused`` why a record has no effect, by its offset.
    """

    listed: dict[str, Listed] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    refused: dict[int, BadRecordError] = field(default_factory=dict)
    catalog: Catalog = field(default_factory=Catalog)

    def read(self, records: Iterable[Any]) -> None:
        """Take records in the order of their offsets."""
        for record in records:
            try:
                self._read(record)
            except BadRecordError as exc:
                self.refused[record.offset] = exc

    def _read(self, record: Any) -> None:
        key = record.key or b""
        if record.value is None:
            self.listed.pop(key.decode(errors="replace"), None)
            catalog = remove_entry(self.catalog, key)
        else:
            entry = decode_catalog(record.value)
            catalog = apply_entry(self.catalog, entry)
            listed = Listed(entry=entry, offset=record.offset, at_ms=record.timestamp)
            self.listed[entry_key(entry).decode()] = listed
            if isinstance(entry, PriceEntry):
                known = self.versions.get(entry.arm, 0)
                self.versions[entry.arm] = max(known, entry.version)
        self.catalog = replace(catalog, offset=record.offset + 1)


class CatalogView:
    """The catalog at offsets that never go back."""

    def __init__(self, records: Sequence[Any]) -> None:
        self._records = records
        self._next = 0
        self._catalog = Catalog()

    def at(self, offset: int) -> Catalog:
        """Return the catalog of the records below ``offset``."""
        while self._next < len(self._records) and self._records[self._next].offset < offset:
            record = self._records[self._next]
            self._next += 1
            try:
                if record.value is None:
                    self._catalog = remove_entry(self._catalog, record.key or b"")
                else:
                    self._catalog = apply_entry(self._catalog, decode_catalog(record.value))
            except BadRecordError:
                continue  # refused then too: the catalog stayed as it was
        if offset > self._catalog.offset:
            self._catalog = replace(self._catalog, offset=offset)
        return self._catalog


async def read_view(reader: LogReader) -> CatalogView:
    """Return the catalog's past, as far as compaction has left it."""
    found: list[Any] = []
    first, end = await reader.bounds(topics.CATALOG, 0)
    async for records in reader.read(topics.CATALOG, 0, first, end):
        found.extend(records)
    return CatalogView(found)


async def read_catalog(reader: LogReader, *, until: int | None = None) -> CatalogLog:
    """Return the catalog up to an offset, or to the topic's end."""
    log = CatalogLog()
    first, end = await reader.bounds(topics.CATALOG, 0)
    if until is not None:
        end = min(end, until)
    async for records in reader.read(topics.CATALOG, 0, first, end):
        log.read(records)
    return log
