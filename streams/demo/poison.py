"""Bad records that the demo sends on purpose; each must become a dead letter, and nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from streams import topics
from streams.records import Outcome, Request, Usage, encode


@dataclass(frozen=True, slots=True, kw_only=True)
class Poison:
    """A record that must be refused, and the reason that is expected."""

    topic: str
    key: bytes
    value: bytes
    reason: str

    @property
    def sha256(self) -> str:
        """Return what its dead letter must name."""
        return hashlib.sha256(self.value).hexdigest()


def bad_requests(good: Request) -> Sequence[Poison]:
    """Return requests that are refused, made from a good one."""
    key = good.budget.partition("/")[0].encode()
    features = good.features or []

    def changed(reason: str, changes: Mapping[str, object], *, key: bytes = key) -> Poison:
        raw = msgspec.to_builtins(good) | {"request_id": f"bad-{reason}"} | dict(changes)
        return Poison(topic=topics.REQUESTS, key=key, value=msgspec.json.encode(raw), reason=reason)

    nan = encode(good).replace(b'"features":[', b'"features":[NaN,')
    return [
        Poison(topic=topics.REQUESTS, key=key, value=b"\xff\xfe no JSON", reason="undecodable"),
        Poison(topic=topics.REQUESTS, key=key, value=nan, reason="undecodable"),
        changed("unknown_field", {"max_ouput_tokens": 10}),
        changed("unknown_budget", {"budget": f"{key.decode()}/nobody"}),
        changed("unknown_arm", {"arms": ["gpt-17"]}),
        changed("feature_length", {"features": features[:-1]}),
        changed("wrong_type", {"input_tokens": "many"}),
        changed("range", {"input_tokens": -1}),
        changed("wrong_key", {}, key=b"somebody-else"),
    ]


def bad_outcomes(budget: str) -> Sequence[Poison]:
    """Return outcomes that are refused whatever was decided."""
    key = budget.partition("/")[0].encode()

    def outcome(reason: str, value: bytes) -> Poison:
        return Poison(topic=topics.OUTCOMES, key=key, value=value, reason=reason)

    return [
        outcome("undecodable", b'{"request_id": '),
        outcome("range", b'{"request_id":"x","reward":1.5}'),
        outcome("empty_outcome", b'{"request_id":"x"}'),
        outcome("missing_field", b'{"reward":0.5}'),
    ]


def contradictions(request: Request, outcome: Outcome) -> Sequence[Poison]:
    """Return a request and an outcome that claim what was said before was something else."""
    key = request.budget.partition("/")[0].encode()
    other_request = msgspec.structs.replace(
        request, max_output_tokens=request.max_output_tokens + 1
    )
    usage = outcome.usage or Usage(prompt_tokens=0, completion_tokens=0)
    other_usage = Usage(
        prompt_tokens=usage.prompt_tokens, completion_tokens=usage.completion_tokens + 1
    )
    other_outcome = Outcome(request_id=request.request_id, usage=other_usage)
    return [
        Poison(topic=topics.REQUESTS, key=key, value=encode(other_request), reason="conflict"),
        Poison(topic=topics.OUTCOMES, key=key, value=encode(other_outcome), reason="conflict"),
    ]


def bad_entry() -> Poison:
    """Return a catalog entry that is refused: a price of zero."""
    value = b'{"kind":"price","arm":"free-lunch","version":1,"input":0,"output":0}'
    return Poison(topic=topics.CATALOG, key=b"price:free-lunch", value=value, reason="price")
