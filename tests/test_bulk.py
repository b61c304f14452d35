"""Decoding many records at once finds what decoding each finds."""

from __future__ import annotations

import base64
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.bulk import BulkDecoder, decode_outcomes, decode_requests
from streams.records import BadRecordError, Outcome, Request, decode, encode

REQUEST = {"request_id": "r1", "budget": "acme/k", "input_tokens": 5, "max_output_tokens": 9}
NAMES = st.one_of(
    st.sampled_from(["r1", "a b", "", "a\nb", "a\n", "\n", "x" * 97, "a/b", "a/", "ü", "a\0", 3]),
    st.text(alphabet="aZ9_.@:+-/\n ", max_size=12),
    st.just("/".join(["a" * 90] * 5)),
)


def alone(kind: type[Any], value: bytes | None) -> Any:
    try:
        return decode(kind, value)
    except BadRecordError as exc:
        return exc


def told(found: Any) -> Any:
    if isinstance(found, BadRecordError):
        return found.reason, found.detail
    return {name: getattr(found, name) for name in found.__struct_fields__}


def check(decoder: BulkDecoder[Any], kind: type[Any], values: list[bytes | None]) -> None:
    assert list(map(told, decoder(values))) == [told(alone(kind, value)) for value in values]


@given(st.lists(st.tuples(NAMES, NAMES), max_size=6))
def test_requests_with_any_names_are_decoded_or_refused_as_one_by_one(names: list[Any]) -> None:
    values = [
        msgspec.json.encode(REQUEST | {"request_id": id_, "budget": budget})
        for id_, budget in [*names, ("r9", "acme")]
    ]
    check(decode_requests, Request, values)


@given(st.lists(NAMES, max_size=6))
def test_outcomes_with_any_names_are_decoded_or_refused_as_one_by_one(names: list[Any]) -> None:
    values = [msgspec.json.encode({"request_id": id_, "reward": 1}) for id_ in names]
    check(decode_outcomes, Outcome, values)


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"{",
        b"\xff",
        b"[" * 5_000,
        b'{"v":2,"request_id":"r2","budget":"acme","input_tokens":1,"max_output_tokens":1,"new":3}',
        b'{"v":2,"request_id":"r 2","budget":"acme","input_tokens":1,"max_output_tokens":1}',
        msgspec.json.encode(REQUEST | {"segment": "a b"}),
        msgspec.json.encode(REQUEST | {"arms": ["a b"]}),
        msgspec.json.encode(REQUEST | {"input_tokens": -1}),
        msgspec.json.encode(REQUEST | {"max_output_token": 1}),
        msgspec.json.encode(REQUEST | {"prompt": "x" * (1 << 18)}),
    ],
)
def test_a_bad_record_is_refused_with_its_reason_and_the_others_are_not(value: bytes | None):
    packed = base64.b64encode(b"\0" * 8).decode()
    good = encode(Request(**REQUEST, features_b64=packed, segment="s", capabilities=["c"]))
    check(decode_requests, Request, [good, value, good])
