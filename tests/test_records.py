"""Records at the boundary: decoding, the AsyncAPI document, lines, and files of entries."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.money import BILL_MAX
from streams import asyncapi, lines, topics
from streams.catalog_file import CatalogFileError, plan, read_file, warnings
from streams.catalog_log import CatalogLog
from streams.explain.wording import safe
from streams.following import entry_key
from streams.records import (
    RECORD_BYTES_MAX,
    ArmEntry,
    BadRecordError,
    BudgetEntry,
    BudgetPosition,
    CatalogEntry,
    Decision,
    Outcome,
    PolicyEntry,
    PriceEntry,
    Request,
    Seen,
    Usage,
    decode,
    decode_catalog,
    encode,
)
from streams.sending import check_budget, check_line, check_outcome, check_request

FIELDS: dict[str, Any] = {
    "request_id": "r1",
    "budget": "acme/k1",
    "input_tokens": 10,
    "max_output_tokens": 20,
    "prompt": "hi",
}


@dataclass(frozen=True, slots=True)
class Message:
    """A record of a topic."""

    topic: str
    value: bytes | None
    key: bytes | None = b"acme"
    partition: int = 1
    offset: int = 2
    timestamp: int = 1_763_787_845_123


# -- decoding


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param({"max_output_token": 5}, "unknown_field", id="misspelt"),
        pytest.param({"input_tokens": -1}, "range", id="negative"),
        pytest.param({"input_tokens": "10"}, "wrong_type", id="text-for-number"),
        pytest.param({"input_tokens": 10**9}, "range", id="absurd"),
        pytest.param({"budget": "acme//k1"}, "range", id="empty-part-of-path"),
        pytest.param({"request_id": "a b"}, "range", id="space-in-id"),
        pytest.param({"v": 0}, "range", id="no-version"),
        pytest.param({"v": 2, "input_tokens": None}, "wrong_type", id="newer-but-wrong"),
    ],
)
def test_a_bad_request_is_refused_with_its_place(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRecordError) as caught:
        decode(Request, json.dumps({**FIELDS, **change}).encode())
    assert caught.value.reason == reason
    assert "$" in caught.value.detail or next(iter(change)) in caught.value.detail


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        pytest.param(None, "empty", id="tombstone"),
        pytest.param(b"\xff\xfe", "undecodable", id="no-utf-8"),
        pytest.param(b'{"request_id": NaN}', "undecodable", id="nan"),
        pytest.param(b'{"request_id":"r' + b"\xff", "undecodable", id="cut-off"),
        pytest.param(b'{"x":' + b"[" * 100_000, "unknown_field", id="deep"),
        pytest.param(b" " * (RECORD_BYTES_MAX + 1), "too_large", id="large"),
        pytest.param(b'{"v":1}', "missing_field", id="empty-object"),
    ],
)
def test_what_is_no_record_is_refused(value: bytes | None, reason: str) -> None:
    with pytest.raises(BadRecordError) as caught:
        decode(Request, value)
    assert caught.value.reason == reason


def test_a_newer_record_is_read_without_what_is_unknown() -> None:
    newer = {**FIELDS, "v": 2, "mood": "sunny"}
    assert decode(Request, json.dumps(newer).encode()).prompt == "hi"


@given(
    st.builds(
        Outcome,
        request_id=st.from_regex(r"\A[a-z0-9]{1,9}\Z"),
        reward=st.none() | st.floats(0, 1),
        cost_nanousd=st.none() | st.integers(0, BILL_MAX),
        usage=st.none() | st.builds(Usage, st.integers(0, 10**8), st.integers(0, 10**8)),
        error=st.none() | st.text(max_size=2_000),
    )
)
def test_what_is_encoded_is_decoded_alike(outcome: Outcome) -> None:
    assert decode(Outcome, encode(outcome)) == outcome


# -- the AsyncAPI document


def test_the_shipped_document_is_current() -> None:
    shipped = Path(asyncapi.__file__).parent / "data" / "asyncapi.json"
    assert shipped.read_text() == asyncapi.text(), "rewrite it with `tollway asyncapi`"


def test_the_document_has_every_topic_and_its_references_hold() -> None:
    document = asyncapi.document()
    assert {c["address"] for c in document["channels"].values()} == set(topics.TOPICS)
    references = {part for part in asyncapi.text().split('"') if part.startswith("#/")}
    assert len(references) > 20
    for reference in references:
        node: Any = document
        for name in reference[2:].split("/"):
            node = node[name]
        assert isinstance(node, dict)


def test_schemas_are_free_of_what_only_python_understands() -> None:
    assert "\\\\A" not in asyncapi.text()
    schema = asyncapi.document()["components"]["schemas"]["Request"]
    assert schema["properties"]["request_id"]["pattern"].startswith("^")
    assert schema["additionalProperties"] is False
    assert {"request_id", "budget", "input_tokens", "max_output_tokens"} == set(schema["required"])


# -- checks before sending


@pytest.mark.parametrize(
    ("change", "place"),
    [
        pytest.param({"features": [1.0]}, "exactly one of prompt", id="two-contents"),
        pytest.param({"prompt": None}, "exactly one of prompt", id="no-content"),
        pytest.param({"prompt": "a\0b"}, "$.prompt", id="nul"),
        pytest.param({"prompt": None, "features": [0.5, 1e9]}, "$.features[1]", id="feature-range"),
        pytest.param({"prompt": None, "features": [0.5, "x"]}, "$.features[1]", id="feature-type"),
        pytest.param({"arms": ["a b"]}, "arms[0] must be", id="arm-name"),
    ],
)
def test_a_request_is_checked_as_a_worker_would(change: dict[str, Any], place: str) -> None:
    with pytest.raises(BadRecordError) as caught:
        check_request({**FIELDS, **change})
    assert place in str(caught.value)


def test_a_line_overrides_defaults_and_tokens_are_estimated_high() -> None:
    line = '{"prompt": "a prompt of thirty characters.", "max_output_tokens": 9}'
    defaults = {"request_id": "x", "budget": "acme", "max_output_tokens": 5}
    request = check_line(line, defaults)
    assert (request.budget, request.max_output_tokens, request.input_tokens) == ("acme", 9, 11)
    for bad in ("[1]", "{", '{"prompt": 5}'):
        with pytest.raises(BadRecordError):
            check_line(bad, defaults)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        pytest.param({"latency_ms": 5}, "empty_outcome", id="nothing-said"),
        pytest.param({"reward": 1.5}, "range", id="reward-over-one"),
        pytest.param(
            {"usage": {"prompt_tokens": 1, "completion_tokens": 1, "cached_tokens": 2}},
            "range",
            id="more-cached-than-prompt",
        ),
        pytest.param({"usage": {"prompt_tokens": 1}}, "missing_field", id="half-a-usage"),
    ],
)
def test_an_outcome_is_checked_as_a_worker_would(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRecordError) as caught:
        check_outcome({"request_id": "r1", **fields})
    assert caught.value.reason == reason


def test_a_budget_path_is_checked() -> None:
    check_budget("acme/search/k1")
    with pytest.raises(BadRecordError):
        check_budget("acme search")


# -- lines


@pytest.mark.parametrize(
    ("topic", "value", "expected"),
    [
        pytest.param(
            topics.REQUESTS,
            encode(check_request({**FIELDS, "prompt": "hi\x1b[2J"})),
            "r1  acme/k1  10+20 tokens, a prompt of 6 characters: hi\\x1b[2J",
            id="request",
        ),
        pytest.param(
            topics.REQUESTS,
            b'{"request_id": \xff\x00\x1b]0;title',
            "cannot be read, undecodable: JSON is malformed: invalid character (byte 15): "
            '{"request_id": \\xff\\x00\\x1b]0;title',
            id="bad-bytes",
        ),
        pytest.param(
            topics.OUTCOMES,
            encode(Outcome(request_id="r1", usage=Usage(3, 4), reward=0.5, error="\n")),
            "acme  r1  3+4 tokens, reward 0.5, error '\\n'",
            id="outcome",
        ),
        pytest.param(
            topics.CATALOG,
            encode(PriceEntry(arm="a@b", version=2, input=150_000, output=600_000)),
            "price:a@b  version 2: $0.15 in, $0.6 out, per million tokens",
            id="price",
        ),
        pytest.param(topics.CATALOG, None, "acme  retired", id="tombstone"),
        pytest.param(topics.DECISIONS, None, "cannot be read, empty", id="no-value"),
    ],
)
def test_a_record_is_one_safe_line(topic: str, value: bytes | None, expected: str) -> None:
    line = lines.line(Message(topic, value))
    assert line.startswith("05:04:05.123  1/2  ")
    assert expected in line
    assert line.isprintable()
    assert json.loads(json.dumps(lines.as_dict(Message(topic, value))))["offset"] == 2


def test_a_decision_is_one_line() -> None:
    decision = Decision(
        decision_id="d", request_id="r1", budget="acme", decided_ms=1, offsets=Seen(0, 0, 0, 0, 0),
        arm="a@b", reserved_nanousd=10**9, reward=0.5, cost_nanousd=0, explored=True,
        budgets=[BudgetPosition("acme", 0, 1, 1, 0, 2.5, 0.1)],
    )  # fmt: skip
    assert lines.decision(decision).startswith("r1  acme  a@b (explored), expects 0.500 for $0")
    assert lines.decision(decision).endswith("λ 2.5")
    rejected = msgspec.structs.replace(decision, arm=None, rejected="no_arm")
    assert lines.decision(rejected) == "r1  acme  rejected: no_arm"


@given(st.binary(max_size=300) | st.text(max_size=300), st.integers(1, 100))
def test_anything_can_be_shown(text: bytes | str, limit: int) -> None:
    assert safe(text, limit).isprintable()


# -- files of catalog entries

TOML = """
[policy]
policy = "pareto"
options = { alpha = 0.1 }
[[arm]]
arm = "a@b"
[[price]]
arm = "a@b"
input_usd = 0.15
output_usd = "0.6"
[[budget]]
budget = "acme"
limit_usd = 12.5
per_request_usd = 0.0003
"""


def log_of(*entries: CatalogEntry) -> CatalogLog:
    log = CatalogLog()
    log.read(
        Message(topics.CATALOG, encode(entry), key=entry_key(entry), partition=0, offset=offset)
        for offset, entry in enumerate(entries)
    )
    return log


def price(version: int, output: int = 600_000) -> PriceEntry:
    return PriceEntry(arm="a@b", version=version, input=150_000, output=output)


def test_a_file_in_dollars_becomes_entries() -> None:
    changes = plan(read_file(TOML, toml=True), log_of())
    by_key = {change.key: change.new for change in changes}
    assert by_key["price:a@b"] == price(1)
    assert by_key["budget:acme"] == BudgetEntry(
        budget="acme", limit_nanousd=12_500_000_000, per_request_nanousd=300_000
    )
    assert [change.line()[:2] for change in changes] == ["+ "] * 4
    # What was written is what holds: applying the file again changes nothing.
    assert plan(read_file(TOML, toml=True), log_of(*by_key.values())) == []


@pytest.mark.parametrize(
    ("known", "given_price", "expected"),
    [
        pytest.param([], {}, 1, id="first"),
        pytest.param([price(4, 1)], {}, 5, id="changed-counts-up"),
        pytest.param([price(4)], {}, None, id="same-stays"),
        pytest.param([price(4)], {"version": 4}, None, id="same-version-same-price"),
        pytest.param([price(4)], {"version": 9}, 9, id="given-above"),
        pytest.param([price(7, 2), price(4, 1)], {}, 8, id="above-every-former-one"),
    ],
)
def test_price_versions_count_up(
    known: list[PriceEntry], given_price: dict[str, int], expected: int | None
) -> None:
    fields = {"kind": "price", "arm": "a@b", "input": 150_000, "output": 600_000, **given_price}
    versions = [
        change.new.version
        for change in plan([fields], log_of(*known))
        if isinstance(change.new, PriceEntry)
    ]
    assert versions == ([] if expected is None else [expected])


def test_a_retired_price_still_counts_for_the_version() -> None:
    log = log_of(price(6))
    log.read([Message(topics.CATALOG, None, key=b"price:a@b", partition=0, offset=1)])
    assert "price:a@b" not in log.listed
    [change] = plan([{"kind": "price", "arm": "a@b", "input": 150_000, "output": 1}], log)
    assert isinstance(change.new, PriceEntry)
    assert change.new.version == 7


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        pytest.param([{"kind": "price", "arm": "a@b", "input": 1, "output": 2, "version": 3}],
                     "version 3 is not above 3", id="same-version-other-price"),
        pytest.param([{"kind": "price", "arm": "c", "input": 0, "output": 0}],
                     "entry 1 (price:c): price", id="price-of-zero"),
        pytest.param([{"kind": "policy", "policy": "no-such"}], "policy", id="unknown-policy"),
        pytest.param([{"kind": "arm", "arm": "c"}, {"kind": "arm", "arm": "c"}],
                     "entry 2 (arm:c): this key comes twice", id="twice"),
        pytest.param([{"arm": "c"}], "entry 1 (no kind:c)", id="no-kind"),
        pytest.param([{"kind": "budget", "budget": "x", "limit_usd": "1e-10"}],
                     "no whole number", id="below-a-nano-dollar"),
        pytest.param([{"kind": "budget", "budget": "x", "limit_usd": 1, "limit_nanousd": 1}],
                     "not both", id="limit-twice"),
        pytest.param([{"kind": "budget", "budget": "x", "limit_usd": "much"}],
                     "no amount of dollars", id="no-number"),
        pytest.param([{"kind": "budget", "budget": "x", "limit_usd": -5}],
                     "limit_usd must be 0 to 1000000000 dollars, got -5", id="negative"),
        pytest.param([{"kind": "price", "arm": "c", "input_usd": "10001", "output_usd": 1}],
                     "input_usd must be 0 to 10000 dollars, got 10001", id="too-dear"),
        pytest.param([{"kind": "budget", "budget": "x"}], "limit_usd is missing", id="no-limit"),
        pytest.param([{"kind": "budget", "budget": "x", "limit_usd": 1, "window": "fortnight"}],
                     "window must be hour, day, week, month, total, or a number of seconds such "
                     "as 90s, got 'fortnight'", id="window"),
        pytest.param([{"kind": "budget", "budget": "x", "limit_usd": 1, "pacing": "slow"}],
                     "pacing must be one of even, pid, none, got 'slow'", id="pacing"),
        pytest.param([{"kind": "policy", "encoder": "lexicon"}],
                     "encoder must be none, lexical, or a version that `tollway encoder` printed, "
                     "got 'lexicon'", id="encoder"),
        pytest.param([{"kind": "arm", "arm": "c", "capabilities": ["json", "a b"]}],
                     "capabilities[1] must be 1 to 96 letters, digits or _.@:+-, got 'a b'",
                     id="capability"),
        pytest.param([{"kind": "arm", "arm": "c/d/e"}],
                     "arm must be 1 to 96 letters, digits or _.@:+-, or two such parts joined by "
                     "/, got 'c/d/e'", id="arm"),
        pytest.param([{"kind": "budget", "budget": "a//b", "limit_usd": 1}],
                     "up to six such parts joined by /, got 'a//b'", id="path"),
    ],
)  # fmt: skip
def test_a_bad_entry_refuses_the_whole_file(entries: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(CatalogFileError) as caught:
        plan([{"kind": "arm", "arm": "good"}, *entries][1:], log_of(price(3)))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "toml"),
    [
        pytest.param("{", False, id="broken-json"),
        pytest.param("[1]", False, id="no-objects"),
        pytest.param("[]", False, id="empty"),
        pytest.param('[{"limit_usd": NaN}]', False, id="nan"),
        pytest.param("[[prices]]\na = 1", True, id="unknown-table"),
        pytest.param("arm = 5", True, id="no-table"),
        pytest.param("= 5", True, id="broken-toml"),
    ],
)
def test_a_file_that_is_none_is_refused(text: str, toml: bool) -> None:
    with pytest.raises(CatalogFileError):
        plan(read_file(text, toml=toml), log_of())


def test_arms_that_would_not_be_routed_to_are_named() -> None:
    log = log_of(ArmEntry(arm="free"), price(1))
    assert list(warnings([], log)) == [
        "arm free has no price: it is never routed to",
        "price of a@b, which is not declared as an arm: it is never routed to",
    ]


def test_that_workers_start_anew_for_another_policy_is_told() -> None:
    first, second = PolicyEntry(policy="pareto"), PolicyEntry(policy="cheapest")
    [fresh] = plan([msgspec.to_builtins(first)], log_of())
    assert list(warnings([fresh], log_of())) == []
    log = log_of(first)
    [change] = plan([msgspec.to_builtins(second)], log)
    assert any("start anew" in warning for warning in warnings([change], log))


def test_a_catalog_record_without_effect_is_kept_as_refused() -> None:
    log = log_of(price(1))
    broken = Message(topics.CATALOG, b'{"kind":"price"}', key=b"price:a@b", partition=0, offset=5)
    log.read([broken])
    assert list(log.refused) == [5]
    assert log.listed["price:a@b"].entry == price(1)
    assert decode_catalog(encode(price(1))) == price(1)
