"""What a field may be, in words for a person who wrote it; what a regular expression is not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, get_args, get_type_hints

from streams.records.entries import ENCODER, BudgetEntry
from streams.records.fields import ArmId, BudgetPath, Identifier, Window

_NAME = "1 to 96 letters, digits or _.@:+-"


def _pattern(kind: Any) -> str:
    return str(get_args(kind)[1].pattern)


_WORDS: Mapping[str, str] = {
    repr(_pattern(Window)): "hour, day, week, month, total, or a number of seconds such as 90s",
    repr(ENCODER): "none, lexical, or a version that `tollway encoder` printed",
    repr(_pattern(Identifier)): _NAME,
    repr(_pattern(ArmId)): f"{_NAME}, or two such parts joined by /",
    repr(_pattern(BudgetPath)): f"{_NAME}, or up to six such parts joined by /",
}
"""What a pattern allows, by the pattern as msgspec shows it."""
_PATTERN = re.compile(r"Expected `str` matching regex ('.*') - at `\$\.(\w+)(?:\[(\d+)\])?`")
_CHOICE = re.compile(r"Invalid enum value .* - at `\$\.pacing`")
_CHOICES = ", ".join(get_args(get_type_hints(BudgetEntry)["pacing"]))


def in_words(detail: str, fields: Mapping[str, Any]) -> str:
    """Return a refusal's detail with the value that was given and what is allowed.

    Parameters
    ----------
    detail : str
        As :class:`~streams.records.BadRecordError` has it; returned as it is if it is of a kind
        that says enough.
    fields : mapping
        The record's fields that were refused.

    Examples
    --------
    >>> detail = "Invalid enum value 'often' - at `$.pacing`"
    >>> in_words(detail, {"pacing": "often"})
    "pacing must be one of even, pid, none, got 'often'"
    """
    if _CHOICE.fullmatch(detail):
        return f"pacing must be one of {_CHOICES}, got {fields['pacing']!r:.100}"
    found = _PATTERN.fullmatch(detail)
    words = found and _WORDS.get(found[1])
    if not found or not words:
        return detail
    name, index = found[2], found[3]
    value = fields[name] if index is None else fields[name][int(index)]
    place = name if index is None else f"{name}[{index}]"
    return f"{place} must be {words}, got {value!r:.100}"
