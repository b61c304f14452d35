"""One record as one line for a person, or as one JSON object; pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from streams import topics
from streams.explain.wording import clock, content, per_million, price_of_request, safe, span, usd
from streams.following import entry_key
from streams.records import (
    ArmEntry,
    BadRecordError,
    BudgetEntry,
    CatalogEntry,
    DeadLetter,
    Decision,
    Outcome,
    PolicyEntry,
    PriceEntry,
    Request,
    Statistics,
    decode,
    decode_catalog,
)

NAMES: Mapping[str, str] = {
    "requests": topics.REQUESTS,
    "decisions": topics.DECISIONS,
    "outcomes": topics.OUTCOMES,
    "catalog": topics.CATALOG,
    "statistics": topics.STATISTICS,
    "dead-letters": topics.DEAD_LETTERS,
}
"""The topics by the names that commands know them by."""

_KINDS: Mapping[str, Any] = {
    topics.REQUESTS: Request,
    topics.DECISIONS: Decision,
    topics.OUTCOMES: Outcome,
    topics.STATISTICS: Statistics,
    topics.DEAD_LETTERS: DeadLetter,
}


def line(record: Any) -> str:
    """Return a record of any of the topics as one line; what cannot be read is shown escaped."""
    return f"{clock(record.timestamp)[11:23]}  {record.partition}/{record.offset}  {_told(record)}"


def as_dict(record: Any) -> dict[str, Any]:
    """Return a record with its place; one that cannot be read has a problem and a preview."""
    found: dict[str, Any] = {
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "at_ms": record.timestamp,
        "key": None if record.key is None else safe(record.key, 400),
    }
    if record.topic == topics.CATALOG and record.value is None:
        return found | {"record": None}
    try:
        return found | {"record": msgspec.to_builtins(_decoded(record))}
    except BadRecordError as exc:
        return found | {"problem": str(exc), "preview": safe(record.value or b"", 200)}


def _decoded(record: Any) -> Any:
    if record.topic == topics.CATALOG:
        return decode_catalog(record.value)
    return decode(_KINDS[record.topic], record.value)


def _told(record: Any) -> str:
    if record.topic == topics.CATALOG and record.value is None:
        return f"{safe(record.key or b'', 160)}  retired"
    try:
        decoded = _decoded(record)
    except BadRecordError as exc:
        return f"cannot be read, {safe(str(exc), 160)}: {safe(record.value or b'')}"
    if record.topic == topics.OUTCOMES:
        return f"{safe(record.key or b'', 100)}  {outcome(decoded)}"
    return _TOLD[record.topic](decoded)


def request(record: Request) -> str:
    """Return a request in one line."""
    asked = f"{record.input_tokens}+{record.max_output_tokens} tokens, {content(record)}"
    begin = "" if record.prompt is None else f": {safe(record.prompt, 40)}"
    return f"{record.request_id}  {record.budget}  {asked}{begin}"


def decision(record: Decision) -> str:
    """Return a decision in one line."""
    head = f"{record.request_id}  {record.budget}  "
    if record.arm is None:
        return f"{head}rejected: {record.rejected}"
    price, _ = price_of_request(record)
    return (
        f"{head}{record.arm}{' (explored)' if record.explored else ''}, expects "
        f"{record.reward:.3f} for {usd(record.cost_nanousd)}, reserved "
        f"{usd(record.reserved_nanousd)}, at most {record.max_output_tokens} tokens, λ {price:.4g}"
    )


def outcome(record: Outcome) -> str:
    """Return an outcome in one line."""
    parts = []
    if record.usage is not None:
        parts.append(f"{record.usage.prompt_tokens}+{record.usage.completion_tokens} tokens")
    if record.cost_nanousd is not None:
        parts.append(f"billed {usd(record.cost_nanousd)}")
    if record.reward is not None:
        parts.append(f"reward {record.reward:g}")
    if record.latency_ms is not None:
        parts.append(span(record.latency_ms))
    if record.error is not None:
        parts.append(f"error '{safe(record.error)}'")
    return f"{record.request_id}  {', '.join(parts)}"


def entry(record: CatalogEntry) -> str:
    """Return a catalog entry in one line."""
    return f"{entry_key(record).decode()}  {_entry(record)}"


def _entry(record: CatalogEntry) -> str:
    if isinstance(record, ArmEntry):
        can = f", can {', '.join(record.capabilities)}" if record.capabilities else ""
        return f"{'deployed' if record.deployed else 'not deployed'}{can}"
    if isinstance(record, PriceEntry):
        cached = "" if record.cached is None else f", {per_million(record.cached)} cached"
        prices = f"{per_million(record.input)} in, {per_million(record.output)} out{cached}"
        return f"version {record.version}: {prices}, per million tokens"
    if isinstance(record, BudgetEntry):
        paced = "" if record.pacing == "even" else ", not paced"
        each = record.per_request_nanousd
        mean = "" if each is None else f", {usd(each)} a request"
        return f"{usd(record.limit_nanousd)} per {record.window}{mean}{paced}"
    assert isinstance(record, PolicyEntry)
    options = "".join(f", {name}={value}" for name, value in record.options.items())
    count = f"{record.dimensions} features"
    if record.segment_weight > 0.0:
        count += f" and {len(record.segments)} segments"
    return f"{record.policy}, {count}, encoder {record.encoder}{options}"


def _statistics(record: Statistics) -> str:
    seen = f"{record.decisions} decisions and {record.outcomes} outcomes seen"
    return f"partition {record.partition}, {record.arm}, {safe(record.policy)}: {seen}"


def _dead_letter(record: DeadLetter) -> str:
    place = f"{record.topic}/{record.partition}/{record.offset}"
    return f"{safe(place, 200)}  {safe(record.reason)}: {safe(record.detail, 200)}"


_TOLD: Mapping[str, Callable[[Any], str]] = {
    topics.REQUESTS: request,
    topics.DECISIONS: decision,
    topics.CATALOG: entry,
    topics.STATISTICS: _statistics,
    topics.DEAD_LETTERS: _dead_letter,
}
