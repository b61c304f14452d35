"""What differs between the decision that was written and the one that was made anew."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from streams.replay_log.rounds import Placed

_FIELDS_MAX = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A decision that did not come out alike: where, and which fields (written, made anew)."""

    partition: int
    offset: int
    request_id: str
    fields: dict[str, tuple[Any, Any]]
    reason: str = ""


def differs(partition: int, item: Placed, value: bytes | None, headers: Any) -> Difference | None:
    """Return how a record differs from the value and headers that it should have; None if not.

    Without a value nothing was decided anew.
    """
    record = item.record
    if value is not None and record.value == value and list(record.headers) == list(headers):
        return None
    request_id = "" if item.decision is None else item.decision.request_id
    if value is None:
        return Difference(
            partition=partition, offset=item.offset, request_id=request_id, fields={},
            reason="is not decided here when made anew",
        )  # fmt: skip
    fields: dict[str, tuple[Any, Any]] = {}
    try:
        written, again = _flat(msgspec.json.decode(record.value)), _flat(msgspec.json.decode(value))
    except (msgspec.DecodeError, TypeError):
        return Difference(
            partition=partition, offset=item.offset, request_id=request_id, fields={},
            reason="is no JSON object",
        )  # fmt: skip
    for name in [*written, *(name for name in again if name not in written)]:
        if written.get(name) != again.get(name):
            fields[name] = (written.get(name), again.get(name))
    if list(record.headers) != list(headers):
        fields["headers"] = (_headers(record.headers), _headers(headers))
    reason = "" if fields else "the same fields in other bytes"
    kept = dict(list(fields.items())[:_FIELDS_MAX])
    return Difference(
        partition=partition, offset=item.offset, request_id=request_id, fields=kept, reason=reason
    )


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Return the leaves of JSON by their paths."""
    if isinstance(value, dict):
        named = {f"{name}.{key}" if name else str(key): inner for key, inner in value.items()}
    elif isinstance(value, list):
        named = {f"{name}[{place}]": inner for place, inner in enumerate(value)}
    else:
        return {name: value}
    leaves: dict[str, Any] = {}
    for path, inner in named.items():
        leaves |= _flat(inner, path)
    return leaves


def _headers(headers: Any) -> dict[str, str]:
    return {key: value.decode(errors="replace") for key, value in headers}
