"""A file of catalog entries, and what applying it to the present catalog would change; pure.

JSON: a list of entries as the topic holds them. TOML: the same under ``[[arm]]``, ``[[price]]``,
``[[budget]]`` and ``[policy]``, where the table's name is the kind. In both, amounts may be given
in dollars: ``limit_usd`` and ``per_request_usd`` of a budget, and ``input_usd``, ``output_usd``,
``cached_usd`` of a price, per million tokens.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

import msgspec

from policy.money import AMOUNT_MAX, PRICE_MAX
from streams.catalog_log import CatalogLog
from streams.following import apply_entry, entry_key
from streams.lines import entry as entry_line
from streams.records import BadRecordError, CatalogEntry, PriceEntry, decode_catalog
from streams.records.words import in_words

_KINDS = ("arm", "price", "budget", "policy")
_DOLLARS: Mapping[str, tuple[str, int, int]] = {
    "limit_usd": ("limit_nanousd", 10**9, AMOUNT_MAX),
    "per_request_usd": ("per_request_nanousd", 10**9, AMOUNT_MAX),
    "input_usd": ("input", 10**6, PRICE_MAX),
    "output_usd": ("output", 10**6, PRICE_MAX),
    "cached_usd": ("cached", 10**6, PRICE_MAX),
}
"""What may be given in dollars: the field of the record, its units per dollar, the most of them."""
_MISSING = {
    f"Object missing required field `{target}`": f"{name} is missing: give it in dollars, or "
    f"{target} in 1/{units} dollars"
    for name, (target, units, _) in _DOLLARS.items()
}

Fields = dict[str, Any]


class CatalogFileError(Exception):
    """A file of catalog entries cannot be applied; the message names the entry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """An entry that differs from the one that holds now, if one does."""

    key: str
    old: CatalogEntry | None
    new: CatalogEntry

    def line(self) -> str:
        """Return the change in words."""
        if self.old is None:
            return f"+ {entry_line(self.new)}"
        return f"~ {entry_line(self.new)}  (was: {entry_line(self.old).split('  ', 1)[1]})"


def read_file(text: str, *, toml: bool) -> list[Fields]:
    """Return the entries' fields as the file gives them.

    Raises
    ------
    CatalogFileError
        If the text is no JSON or TOML of entries.
    """
    try:
        content = tomllib.loads(text, parse_float=Decimal) if toml else _from_json(text)
    except (ValueError, RecursionError) as exc:
        raise CatalogFileError(f"not {'TOML' if toml else 'JSON'}: {exc}") from None
    entries = list(_tables(content)) if isinstance(content, dict) else content
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise CatalogFileError("expected a list of entries, or tables named by their kind")
    if not entries:
        raise CatalogFileError("there is no entry in it")
    return entries


def plan(fields: list[Fields], log: CatalogLog) -> list[Change]:
    """Return what applying the entries would change; entries that hold already are left out.

    A price without a ``version`` gets the next one if it differs from the present price.

    Raises
    ------
    CatalogFileError
        If an entry cannot be read, contradicts itself, comes twice, or has a price version that
        is not above all former ones.
    """
    catalog = log.catalog
    changes: dict[str, Change] = {}
    seen: set[str] = set()
    for number, given in enumerate(fields, 1):
        try:
            entry = _entry(given, log)
            catalog = apply_entry(catalog, entry)
        except BadRecordError as exc:
            detail = _MISSING.get(exc.detail) or in_words(exc.detail, given)
            raise CatalogFileError(
                f"entry {number} ({_name(given)}): {exc.reason}: {detail}"
            ) from None
        key = entry_key(entry).decode()
        if key in seen:
            raise CatalogFileError(f"entry {number} ({key}): this key comes twice")
        seen.add(key)
        listed = log.listed.get(key)
        old = None if listed is None else listed.entry
        if entry != old:
            changes[key] = Change(key=key, old=old, new=entry)
    return list(changes.values())


def warnings(changes: list[Change], log: CatalogLog) -> Iterator[str]:
    """Say what the changes do besides: workers that start anew, arms that are not routed to."""
    if "policy" in log.listed and any(change.key == "policy" for change in changes):
        yield "workers end with code 70 at their next request, to start anew with the policy"
    entries = {key: listed.entry for key, listed in log.listed.items()}
    entries |= {change.key: change.new for change in changes}
    arms = {key.partition(":")[2] for key in entries if key.startswith("arm:")}
    prices = {key.partition(":")[2] for key in entries if key.startswith("price:")}
    for arm in sorted(arms - prices):
        yield f"arm {arm} has no price: it is never routed to"
    for arm in sorted(prices - arms):
        yield f"price of {arm}, which is not declared as an arm: it is never routed to"


def _from_json(text: str) -> Any:
    # Not msgspec: a float must stay exact until it is known to be an amount of dollars.
    return json.loads(text, parse_float=Decimal, parse_constant=_refuse_constant)


def _tables(content: Fields) -> Iterator[Any]:
    if "entries" in content and len(content) == 1:
        yield from content["entries"]
        return
    for kind, tables in content.items():
        if kind not in _KINDS:
            raise CatalogFileError(f"unknown table {kind!r}; there are {', '.join(_KINDS)}")
        for table in tables if isinstance(tables, list) else [tables]:
            if not isinstance(table, dict):
                raise CatalogFileError(f"{kind} must be a table")
            yield {"kind": kind, **table}


def _entry(given: Fields, log: CatalogLog) -> CatalogEntry:
    fields = {name: value for name, value in given.items() if name not in _DOLLARS}
    for name in given.keys() & _DOLLARS.keys():
        target, units, units_max = _DOLLARS[name]
        if target in given:
            raise BadRecordError("range", f"give {target} or {name}, not both")
        fields[target] = _units(name, given[name], units, units_max)
    if fields.get("kind") == "price" and "version" not in fields:
        fields["version"] = _next_version(fields, log)
        return decode_catalog(_encode(fields))
    entry = decode_catalog(_encode(fields))
    if isinstance(entry, PriceEntry):
        listed = log.listed.get(f"price:{entry.arm}")
        last = log.versions.get(entry.arm, 0)
        if entry.version <= last and (listed is None or listed.entry != entry):
            raise BadRecordError("range", f"version {entry.version} is not above {last}, the last")
    return entry


def _next_version(fields: Fields, log: CatalogLog) -> int:
    """Return the version of a price that has none: the present one's if they are equal."""
    arm = fields.get("arm")
    last = log.versions.get(arm, 0) if isinstance(arm, str) else 0
    listed = log.listed.get(f"price:{arm}")
    if listed is not None and isinstance(listed.entry, PriceEntry):
        same = decode_catalog(_encode({**fields, "version": listed.entry.version}))
        if same == listed.entry:
            return listed.entry.version
    return last + 1


def _units(name: str, value: Any, units: int, units_max: int) -> int:
    try:
        amount = Decimal(str(value)) * units
    except InvalidOperation:
        raise BadRecordError("wrong_type", f"{name} is no amount of dollars: {value!r}") from None
    if not amount.is_finite() or amount != amount.to_integral_value():
        raise BadRecordError("range", f"{name} is no whole number of 1/{units} dollars: {value}")
    if not 0 <= amount <= units_max:
        raise BadRecordError(
            "range", f"{name} must be 0 to {units_max // units} dollars, got {value}"
        )
    return int(amount)


def _encode(fields: Fields) -> bytes:
    try:
        return _encoder.encode(fields)
    except (TypeError, OverflowError) as exc:
        raise BadRecordError("wrong_type", str(exc)) from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _name(given: Fields) -> str:
    what = given.get("arm") or given.get("budget") or ""
    return f"{given.get('kind', 'no kind')}{':' if what else ''}{what}"


_encoder = msgspec.json.Encoder(decimal_format="number")
