"""Records to JSON and back, strictly; newer ones without what this version does not know."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import msgspec
from msgspec import NODEFAULT, Struct
from msgspec.structs import FieldInfo

from streams.newer import known_part
from streams.records.entries import CatalogEntry
from streams.records.fields import SCHEMA

R = TypeVar("R", bound=Struct)

RECORD_BYTES_MAX = 1 << 18
"""A record larger than this is refused undecoded; a prompt that long belongs in a store."""


class BadRecordError(Exception):
    """A record cannot be accepted. ``reason`` is one word for counting, ``detail`` says what."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def encode(record: Struct) -> bytes:
    """Return the record as JSON."""
    return _encoder.encode(record)


def decode(kind: type[R], value: bytes | None) -> R:
    """Return the record, or raise :class:`BadRecordError` with the place inside it that is wrong.

    A record whose ``v`` is newer than :data:`SCHEMA` is read without its unknown fields.
    """
    if value is None:
        raise BadRecordError("empty", "the record has no value")
    if len(value) > RECORD_BYTES_MAX:
        raise BadRecordError("too_large", f"{len(value)} bytes, at most {RECORD_BYTES_MAX}")
    try:
        return cast(R, _decoder(kind).decode(value))
    except msgspec.ValidationError as exc:
        newer = _decode_newer(kind, value)
        if newer is not None:
            return newer
        raise BadRecordError(_reason(str(exc)), str(exc)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise BadRecordError("undecodable", str(exc)) from None


def _reason(message: str) -> str:
    if "unknown field" in message:
        return "unknown_field"
    if "missing required field" in message:
        return "missing_field"
    return "wrong_type" if message.startswith("Expected `") and ", got" in message else "range"


def _decode_newer(kind: type[R], value: bytes) -> R | None:
    """Return the record of a newer schema without its unknown fields; None if it is not one."""
    try:
        raw = msgspec.json.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if not isinstance(raw, dict) or type(raw.get("v")) is not int or raw["v"] <= SCHEMA:
        return None
    try:
        return msgspec.convert(known_part(kind, raw), kind, strict=True)
    except msgspec.ValidationError as exc:
        raise BadRecordError(_reason(str(exc)), str(exc)) from None


def fields_of(kind: type[Struct], type_of: Callable[[FieldInfo], Any]) -> list[Any]:
    """Return the fields of a kind as :func:`msgspec.defstruct` takes them, of other types."""
    found: list[Any] = []
    for field in msgspec.structs.fields(kind):
        typed = field.name, type_of(field)
        if field.required:
            found.append(typed)
        elif field.default is not NODEFAULT:
            found.append((*typed, field.default))
        else:
            found.append((*typed, msgspec.field(default_factory=field.default_factory)))
    return found


def decode_catalog(value: bytes | None) -> CatalogEntry:
    """Return the catalog entry; raise :class:`BadRecordError` if it is none."""
    return decode(CatalogEntry, value)  # type: ignore[arg-type]


@functools.cache
def _decoder(kind: Any) -> Any:
    return msgspec.json.Decoder(kind)


_encoder = msgspec.json.Encoder()
