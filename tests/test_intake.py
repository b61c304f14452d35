"""From bytes to what the core takes: one word of reason for each way to be wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.catalog import BudgetSpec, Catalog
from policy.money import Price
from policy.requests import Incoming
from policy.terms import Arm, Settings
from streams.following import apply_entry
from streams.intake import Intake, Raw
from streams.records import (
    ArmEntry,
    BadRecordError,
    Decision,
    Outcome,
    PolicyEntry,
    Request,
    decision_id,
    decode,
    decode_catalog,
)
from tests.single import one_outcome, one_request

CATALOG = (
    Catalog(settings=Settings(dimensions=3))
    .with_arm(Arm(arm="a", price=Price(version=1, input=1, output=1)))
    .with_budget(BudgetSpec(budget="acme/key", limit_nanousd=1))
)


def raw(**fields: Any) -> bytes:
    base = {"request_id": "r", "budget": "acme/key", "input_tokens": 1, "max_output_tokens": 2}
    return json.dumps({**base, **fields}).encode()


def take(value: bytes | None, *, key: bytes | None = b"acme", **more: Any) -> Incoming:
    intake = Intake(CATALOG, more.pop("encode", None))
    return one_request(intake, value, key=key, offset=5, at_ms=7, **more)


def test_a_request_is_read_with_the_constant_as_its_last_feature() -> None:
    request = take(raw(features=[0.5, -1, 2], arms=["a"], deadline_ms=9))
    assert request.features.tolist() == [0.5, -1.0, 2.0, 1.0]
    assert request.id.hex() == decision_id("acme", "r")
    assert (request.offset, request.at_ms, request.deadline_ms) == (5, 7, 9)
    assert request.arms == {"a"}


def test_floats_in_base64_are_the_numbers() -> None:
    packed = "AAAAPwAAgL8AAABA"  # 0.5, -1, 2
    one, other = take(raw(features=[0.5, -1, 2])), take(raw(features_b64=packed))
    assert one.features.tolist() == other.features.tolist()
    assert one.id == other.id
    assert one.request_print != other.request_print


def test_a_prompt_becomes_features_by_the_catalogs_encoder() -> None:
    def encode(texts: Any) -> Any:
        return np.array([[len(text), 0.0, 0.0] for text in texts])

    assert take(raw(prompt="four"), encode=encode).features.tolist() == [4.0, 0.0, 0.0, 1.0]
    with pytest.raises(BadRecordError, match="encoder is none"):
        take(raw(prompt="four"))


def test_a_request_that_was_accepted_once_is_read_whatever_the_catalog_says_now() -> None:
    value = raw(budget="acme/gone", features=[1, 2], arms=["gone"])
    with pytest.raises(BadRecordError, match="unknown_budget"):
        take(value)
    assert take(value, known=True).features.tolist() == [0.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        pytest.param(raw(features=[1, 2]), "feature_length", id="too-few"),
        pytest.param(raw(features=[1, 2, 2e6]), "range", id="too-large"),
        pytest.param(raw(features=[1, 2, 1e39]), "range", id="beyond-float32"),
        pytest.param(raw(features_b64="AAAA"), "features", id="broken-float"),
        pytest.param(raw(features_b64="!"), "features", id="no-base64"),
        pytest.param(raw(), "features", id="none"),
        pytest.param(raw(features=[1, 2, 3], prompt="x"), "features", id="two"),
        pytest.param(raw(features=[1, 2, 3], arms=["b"]), "unknown_arm", id="arm"),
        pytest.param(raw(features=[1, 2, 3], budget="acme"), "unknown_budget", id="budget"),
        pytest.param(raw(features=[1, 2, 3], budget="acme//key"), "range", id="path"),
        pytest.param(raw(features=[1, 2, 3], request_id="a b"), "range", id="id"),
        pytest.param(raw(features=[1, 2, 3], request_id="r\n"), "range", id="id-newline"),
        pytest.param(None, "empty", id="no-value"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_what_is_wrong_has_one_word(value: bytes | None, reason: str) -> None:
    with pytest.raises(BadRecordError) as caught:
        take(value)
    assert caught.value.reason == reason


@pytest.mark.parametrize("key", [b"other", b"", None, b"\xff", b"acme/key"])
def test_the_key_is_the_budgets_root(key: bytes | None) -> None:
    with pytest.raises(BadRecordError, match="wrong_key"):
        take(raw(features=[1, 2, 3]), key=key)


def test_a_newer_schema_is_read_without_what_is_new_at_any_depth() -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "audio_tokens": 5}
    value = json.dumps({"v": 2, "request_id": "r", "usage": usage, "mood": {"a": [1]}})
    outcome = decode(Outcome, value.encode())
    assert outcome.usage is not None
    assert (outcome.v, outcome.usage.completion_tokens) == (2, 4)
    with pytest.raises(BadRecordError, match="unknown_field"):
        decode(Outcome, value.replace('"v": 2', '"v": 1').encode())
    entry = decode_catalog(b'{"v":2,"kind":"arm","arm":"x","mood":1}')
    assert isinstance(entry, ArmEntry)
    assert entry.arm == "x"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*Request.__struct_fields__, "usage", "kind"]), inner)
    ),
    max_leaves=12,
)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(data=st.binary(max_size=60) | json_values.map(lambda v: json.dumps(v).encode()))
def test_no_bytes_raise_anything_but_a_reason(data: bytes) -> None:
    intake = Intake(CATALOG, None)
    for read in (
        lambda: one_request(intake, data),
        lambda: one_outcome(intake, data),
        lambda: decode_catalog(data),
        lambda: decode(Decision, data),
    ):
        try:
            read()
        except BadRecordError as refused:
            assert refused.reason.isidentifier()


@pytest.mark.parametrize("data", [b"[" * 200_000, b'{"v":2,"a":' * 100_000, b'{"a":"\xff"}'])
def test_hostile_bytes_have_a_reason(data: bytes) -> None:
    for kind in (Request, Outcome, Decision):
        with pytest.raises(BadRecordError):
            decode(kind, data)
    with pytest.raises(BadRecordError):
        decode_catalog(data)


def test_a_segment_that_the_catalog_does_not_name_counts_under_other() -> None:
    named = replace(CATALOG, settings=replace(CATALOG.settings, segments=("extraction",)))
    intake = Intake(named, None)
    taken = [
        one_request(intake, raw(features=[0.0] * named.settings.dimensions, **more)).segment
        for more in ({"segment": "extraction"}, {"segment": "x" * 90}, {})
    ]  # fmt: skip
    assert taken == ["extraction", "other", "all"]


def test_segments_with_a_weight_are_features_after_those_given() -> None:
    entry = PolicyEntry(dimensions=2, encoder="none", segments=["b", "a", "b"], segment_weight=0.5)
    catalog = apply_entry(CATALOG, entry)
    assert (catalog.settings.given, catalog.settings.dimensions) == (2, 4)
    intake = Intake(catalog, None)
    rows = [
        one_request(intake, raw(features=[7, 8], **more)).features.tolist()
        for more in ({"segment": "a"}, {"segment": "b"}, {"segment": "x"}, {})
    ]
    assert rows == [[7, 8, 0, 0.5, 1], [7, 8, 0.5, 0, 1], [7, 8, 0, 0, 1], [7, 8, 0, 0, 1]]
    with pytest.raises(BadRecordError, match="4 features, not 2"):
        one_request(intake, raw(features=[7, 8, 0, 0.5]))


@pytest.mark.parametrize(
    "change", [{"segments": ["b", "a"]}, {"segment_weight": 0.6}, {"segment_weight": 0.0}]
)
def test_what_was_learned_with_other_segments_is_of_other_features(change: dict[str, Any]) -> None:
    entry = {"encoder": "none", "segments": ["a", "b"], "segment_weight": 0.5}
    first, other = (
        apply_entry(CATALOG, PolicyEntry(**{**entry, **more})).settings.features
        for more in ({}, change)
    )
    assert first != other


def test_outcomes_of_other_content_have_other_prints() -> None:
    usage = {"prompt_tokens": 1, "completion_tokens": 2}
    contents = [
        {"usage": usage, "reward": 0.5},
        {"usage": usage | {"completion_tokens": 3}, "reward": 0.25},
        {"usage": usage | {"cached_tokens": 1}, "reward": 0.5, "against": "a"},
    ]
    values = [json.dumps({"request_id": "r", **content}).encode() for content in contents]
    records = [Raw(b"acme", value, offset, 7) for offset, value in enumerate([*values, values[0]])]
    found, refused = Intake(CATALOG, None).outcomes(records)
    assert not refused
    for prints in (found.usage_print.tolist(), found.reward_print.tolist()):
        assert len(set(prints[:3])) == 3
        assert prints[3] == prints[0]


GIVEN = [1, 2, 3]
USAGE = {"prompt_tokens": 2, "completion_tokens": 3}
REQUESTS = [
    (key, raw(**{"features": GIVEN, **fields}))
    for key, fields in [
        (b"acme", {}), (b"acme", {"request_id": "s", "arms": ["a"], "segment": "x"}),
        (b"other", {}), (None, {}), (b"acme", {"budget": "acme"}), (b"acme", {"arms": ["a", "b"]}),
        (b"acme", {"features": [1, 2]}), (b"acme", {"features": [1, 2, 2e6]}),
        (b"acme", {"features": None, "features_b64": "AAAAPwAAgL8AAABA"}),
        (b"acme", {"prompt": "two"}), (b"acme", {"input_tokens": -1}), (b"other", {"arms": ["b"]}),
    ]
]  # fmt: skip
OUTCOMES = [
    (key, json.dumps({"request_id": "r", **fields}).encode())
    for key, fields in [
        (b"acme", {"usage": USAGE}), (b"other", {"usage": USAGE, "reward": 1}), (b"acme", {}),
        (b"acme", {"usage": USAGE | {"cached_tokens": 2}}),
        (b"acme", {"usage": USAGE | {"cached_tokens": 3}}),
        (b"acme", {"reward": 0, "decision_id": decision_id("acme", "r")}),
        (b"acme", {"reward": 0, "decision_id": decision_id("other", "r")}),
        (b"acme", {"error": "gone"}), (b"acme", {"reward": 2}), (b"\xff", {"cost_nanousd": 0}),
    ]
]  # fmt: skip


def alone(intake: Intake, method: str, key: bytes | None, value: bytes, offset: int) -> Any:
    """Return a record's fields when it is read by itself, or what is wrong with it."""
    found, refused = getattr(intake, method)([Raw(key, value, offset, 7)])
    return (refused[0].reason, refused[0].detail) if refused else found


@given(st.lists(st.integers(0, 99), max_size=12))
def test_a_batch_is_read_as_its_records_are_one_by_one(picks: list[int]) -> None:
    intake = Intake(CATALOG, None)
    for method, values in (("requests", REQUESTS), ("outcomes", OUTCOMES)):
        chosen = [values[pick % len(values)] for pick in picks]
        records = [Raw(*pair, offset, 7) for offset, pair in enumerate(chosen)]
        found, refused = getattr(intake, method)(records)
        told = {place: (error.reason, error.detail) for place, error in refused.items()}
        each = [alone(intake, method, *pair, at) for at, pair in enumerate(chosen)]
        assert told == {at: one for at, one in enumerate(each) if isinstance(one, tuple)}
        good = [one for one in each if not isinstance(one, tuple)]
        assert list(found.offsets) == [offset for one in good for offset in one.offsets]
        assert found.ids == [id_ for one in good for id_ in one.ids]
        if method == "requests":
            rows = [one.features[0].tolist() for one in good]
            assert found.features.tolist() == rows
            assert found.segments == [one.segments[0] for one in good]
        else:
            assert found.usage_print.tolist() == [one.usage_print.item() for one in good]


def test_each_is_refused_for_its_reason_and_the_good_around_it_go_on() -> None:
    intake = Intake(CATALOG, None)
    wanted = {
        "requests": {
            2: "wrong_key", 3: "wrong_key", 4: "unknown_budget", 5: "unknown_arm",
            6: "feature_length", 7: "range", 9: "features", 10: "range", 11: "wrong_key",
        },
        "outcomes": {2: "empty_outcome", 4: "range", 6: "other_decision", 8: "range"},
    }  # fmt: skip
    for method, values in (("requests", REQUESTS), ("outcomes", OUTCOMES)):
        records = [Raw(*pair, offset, 7) for offset, pair in enumerate(values)]
        found, refused = getattr(intake, method)(records)
        assert {place: error.reason for place, error in refused.items()} == wanted[method]
        good = [offset for offset in range(len(values)) if offset not in wanted[method]]
        assert list(found.offsets) == good
