"""Many records of one kind decoded together: the checks of ``records.decode``, at less cost.

A pattern that msgspec checks takes a call of ``re`` for each field of each record, a fifth of the
whole decoding. Here the names of all records are matched at once; only where that fails is each
record decoded by itself, which says what is wrong with which.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from operator import attrgetter
from typing import Annotated, Any, Generic, TypeVar

import msgspec
from msgspec import Meta, Struct

from streams.records import (
    BUDGET_LENGTH_MAX,
    BUDGET_PATTERN,
    IDENTIFIER_PATTERN,
    RECORD_BYTES_MAX,
    BadRecordError,
    Outcome,
    Request,
    decode,
    fields_of,
)

R = TypeVar("R", bound=Struct)
_UNDECODABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_Short = Annotated[str, Meta(max_length=BUDGET_LENGTH_MAX)]


class BulkDecoder(Generic[R]):
    """Decodes many records of a kind; ``patterns`` are those of fields that every record has."""

    def __init__(self, kind: type[R], patterns: Mapping[str, str]) -> None:
        self._kind = kind
        self._decode = msgspec.json.Decoder(_without_patterns(kind, patterns)).decode
        self._checks = [
            # Nothing is tried a second way: a text that does not match is told at once.
            (attrgetter(name), re.compile(rf"(?>(?:{pattern})\n)*+"))
            for name, pattern in patterns.items()
        ]

    def __call__(self, values: Sequence[bytes | None]) -> list[R | BadRecordError]:
        """Return of each value its record, or what is wrong with it."""
        found = self._decoded(values)
        good = [r for r in found if not isinstance(r, BadRecordError)]
        if all(_match({name(r) for r in good}, pattern) for name, pattern in self._checks):
            return found
        return [self._one(value) for value in values]

    def _decoded(self, values: Sequence[bytes | None]) -> list[Any]:
        """Return of each value its record, whatever its names are, or what is wrong with it."""
        with suppress(*_UNDECODABLE, TypeError):
            # Nothing is wrong with most batches. A value of None has no length.
            if max(map(len, values), default=0) <= RECORD_BYTES_MAX:  # type: ignore[arg-type]
                return list(map(self._decode, values))  # type: ignore[arg-type]
        return list(map(self._quickly, values))

    def _quickly(self, value: bytes | None) -> Any:
        if value is not None and len(value) <= RECORD_BYTES_MAX:
            with suppress(*_UNDECODABLE):
                return self._decode(value)
        return self._one(value)

    def _one(self, value: bytes | None) -> R | BadRecordError:
        try:
            return decode(self._kind, value)
        except BadRecordError as exc:
            return exc


def _match(texts: Collection[str], lines_of: re.Pattern[str]) -> bool:
    lines = "".join(f"{text}\n" for text in texts)
    # A text with a line break in it would pass for two.
    alone = lines.count("\n") == len(texts)
    return alone and lines_of.fullmatch(lines) is not None


def _without_patterns(kind: type[Struct], names: Collection[str]) -> type[Struct]:
    fields = fields_of(kind, lambda field: _Short if field.name in names else field.type)
    return msgspec.defstruct(
        kind.__name__, fields, kw_only=True, forbid_unknown_fields=True, gc=False
    )


decode_requests = BulkDecoder(Request, {"request_id": IDENTIFIER_PATTERN, "budget": BUDGET_PATTERN})
decode_outcomes = BulkDecoder(Outcome, {"request_id": IDENTIFIER_PATTERN})
