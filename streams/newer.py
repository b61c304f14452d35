"""Reads records of a newer schema: what this version knows is kept, the rest is left alone."""

from __future__ import annotations

import functools
from typing import Any

import msgspec
from msgspec.inspect import StructType, Type, UnionType


def known_part(kind: Any, raw: Any) -> Any:
    """Return decoded JSON without the fields that ``kind`` does not know, at any depth.

    Examples
    --------
    >>> usage = msgspec.defstruct("usage", [("tokens", int)])
    >>> call = msgspec.defstruct("call", [("usage", usage | None)])
    >>> known_part(call, {"usage": {"tokens": 1, "new": 2}, "other": 3})
    {'usage': {'tokens': 1}}
    """
    return _known(_type_of(kind), raw)


@functools.cache
def _type_of(kind: Any) -> Type:
    return msgspec.inspect.type_info(kind)


def _known(info: Type, raw: Any) -> Any:
    if not isinstance(raw, dict):
        return raw
    if isinstance(info, UnionType):
        structs = [member for member in info.types if isinstance(member, StructType)]
        fitting = [s for s in structs if s.tag_field is None or raw.get(s.tag_field) == s.tag]
        return _known(fitting[0], raw) if fitting else raw
    if not isinstance(info, StructType):
        return raw
    fields = {field.encode_name: field.type for field in info.fields}
    return {
        name: _known(fields[name], value) if name in fields else value
        for name, value in raw.items()
        if name in fields or name == info.tag_field
    }
