"""The AsyncAPI 3 document of the topics, made from the structs that decode their records."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from streams import records, topics

_REFERENCE = "#/components/schemas/{name}"
_HEADERS = {
    "type": "object",
    "description": "Headers pass through to the decision unread.",
    "properties": {
        "traceparent": {"type": "string", "description": "W3C trace context"},
        "tracestate": {"type": "string", "description": "W3C trace context"},
        "ce_id": {"type": "string", "description": "CloudEvents, as are all ce_ headers"},
    },
    "additionalProperties": True,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Channel:
    """A topic as others see it: ``action`` is what an application beside Tollway does with it."""

    address: str
    kind: Any
    action: str
    key: str
    summary: str


_CHANNELS: Mapping[str, _Channel] = {
    "requests": _Channel(
        address=topics.REQUESTS,
        kind=records.Request,
        action="send",
        key="the root of the budget path, in the partition of its murmur2 hash",
        summary="Calls that are wanted.",
    ),
    "decisions": _Channel(
        address=topics.DECISIONS,
        kind=records.Decision,
        action="receive",
        key="that of the request",
        summary="What was decided; of several for one request the one at the lowest offset counts.",
    ),
    "outcomes": _Channel(
        address=topics.OUTCOMES,
        kind=records.Outcome,
        action="send",
        key="that of the request, in the partition of its murmur2 hash",
        summary="What became of calls: usage, reward, or both.",
    ),
    "catalog": _Channel(
        address=topics.CATALOG,
        kind=records.CatalogEntry,
        action="send",
        key="arm:<arm>, price:<arm>, budget:<path> or policy",
        summary="Arms, prices, budgets and the policy; a tombstone retires an entry.",
    ),
    "statistics": _Channel(
        address=topics.STATISTICS,
        kind=records.Statistics,
        action="receive",
        key="<partition>:<arm>",
        summary="What each partition has learned of each arm.",
    ),
    "deadLetters": _Channel(
        address=topics.DEAD_LETTERS,
        kind=records.DeadLetter,
        action="receive",
        key="<topic>/<partition>/<offset> of the record",
        summary="Records that were refused: where they lie and why, never what they hold.",
    ),
    "ledgerHeads": _Channel(
        address=topics.LEDGER_HEADS,
        kind=records.LedgerHead,
        action="receive",
        key="<partition>",
        summary="Signed hashes of what the ledger holds, out of reach of its database's roles.",
    ),
}


def document() -> dict[str, Any]:
    """Return the document; equal records and topics give an equal document."""
    schemas, components = msgspec.json.schema_components(
        [channel.kind for channel in _CHANNELS.values()], ref_template=_REFERENCE
    )
    payloads = dict(zip(_CHANNELS, schemas, strict=True))
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Tollway",
            "version": f"{records.SCHEMA}.0.0",
            "description": "LLM routing inside Kafka: requests in, decisions out, outcomes back.",
        },
        "defaultContentType": "application/json",
        "channels": {name: _channel(name, channel) for name, channel in _CHANNELS.items()},
        "operations": {name: _operation(name, channel) for name, channel in _CHANNELS.items()},
        "components": {
            "messages": {
                name: _message(channel, payloads[name]) for name, channel in _CHANNELS.items()
            },
            "schemas": {name: _plain(schema) for name, schema in sorted(components.items())},
        },
    }


def text() -> str:
    """Return the document as JSON for people and files."""
    return json.dumps(document(), indent=2, ensure_ascii=False) + "\n"


def _channel(name: str, channel: _Channel) -> dict[str, Any]:
    settings = topics.TOPICS[channel.address]
    configuration = {
        "cleanup.policy": settings.cleanup.split(","),
        "retention.ms": settings.retention_ms,
    }
    kafka: dict[str, Any] = {"topicConfiguration": configuration, "bindingVersion": "0.5.0"}
    if settings.partitions is not None:
        kafka["partitions"] = settings.partitions
    return {
        "address": channel.address,
        "description": channel.summary,
        "messages": {name: {"$ref": f"#/components/messages/{name}"}},
        "bindings": {"kafka": kafka},
    }


def _operation(name: str, channel: _Channel) -> dict[str, Any]:
    return {
        "action": channel.action,
        "channel": {"$ref": f"#/channels/{name}"},
        "messages": [{"$ref": f"#/channels/{name}/messages/{name}"}],
    }


def _message(channel: _Channel, payload: dict[str, Any]) -> dict[str, Any]:
    return {
        "contentType": "application/json",
        "summary": channel.summary,
        "payload": _plain(payload),
        "headers": _HEADERS,
        "bindings": {
            "kafka": {
                "key": {"type": "string", "description": channel.key},
                "bindingVersion": "0.5.0",
            }
        },
    }


def _plain(schema: Any) -> Any:
    """Return a schema without what only Python understands: its anchors, and AsyncAPI's rest.

    A discriminator is a word in AsyncAPI, not an object: the tag's value in each alternative says
    as much.
    """
    if isinstance(schema, list):
        return [_plain(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    plain = {key: _plain(part) for key, part in schema.items()}
    if isinstance(plain.get("pattern"), str):
        plain["pattern"] = plain["pattern"].replace(r"\A", "^").replace(r"\Z", "$")
    if isinstance(plain.get("discriminator"), dict):
        plain["discriminator"] = plain["discriminator"]["propertyName"]
    if isinstance(plain.get("description"), str):
        plain["description"] = " ".join(plain["description"].split())
    return plain
