"""What must not be accepted, through real Kafka: one dead letter for each, the rest go on."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from streams import topics
from streams.records import Decision, Outcome, Usage, decision_id, encode
from tests.deployment import DIMENSIONS, Deployment, answer, make_request

pytestmark = [pytest.mark.kafka, pytest.mark.postgres]

ROOT = "bad"
CANARY = "canary-7f3a"
FLOATS = [0.5] * DIMENSIONS


@dataclass(frozen=True)
class Bad:
    """A record that must be refused, and for which reason."""

    rule: str
    value: bytes | None
    reason: str
    key: bytes | None = ROOT.encode()
    shift: int = 0
    """How many partitions beside its own it is sent."""


def request(**fields: Any) -> bytes:
    base: dict[str, Any] = {
        "request_id": f"bad-{hashlib.sha1(repr(fields).encode()).hexdigest()[:12]}",
        "budget": f"{ROOT}/team/a",
        "input_tokens": 10,
        "max_output_tokens": 10,
    }
    if not fields.keys() & {"prompt", "features", "features_b64"}:
        base["features"] = FLOATS
    merged = {k: v for k, v in {**base, **fields}.items() if v is not ...}
    return json.dumps(merged).encode()


def floats_b64(values: list[float]) -> str:
    return base64.b64encode(np.array(values, "<f4").tobytes()).decode()


REQUESTS = [
    Bad("bytes that are no text", b"\xff\xfe\x00" + CANARY.encode(), "undecodable"),
    Bad("bad UTF-8 behind a wrong type", b'{"request_id": 1, "z": "\xff"}', "wrong_type"),
    Bad("half a JSON", request()[:-20], "undecodable"),
    Bad("nothing", b"", "undecodable"),
    Bad("no value", None, "empty"),
    Bad("another JSON type", b"[1, 2]", "wrong_type"),
    Bad("nested without end", b"[" * 100_000, "wrong_type"),
    Bad("nested in an unknown field", b'{"z":' + b'{"z":' * 40_000, "unknown_field"),
    Bad("a text for a number", request(input_tokens="10"), "wrong_type"),
    Bad("a truth for a number", request(input_tokens=True), "wrong_type"),
    Bad("a fraction of a token", request(input_tokens=1.5), "wrong_type"),
    Bad("an unknown field", request(max_ouput_tokens=5), "unknown_field"),
    Bad("a missing field", request(input_tokens=...), "missing_field"),
    Bad("NaN", request(features=[float("nan")] * DIMENSIONS), "undecodable"),
    Bad("Infinity", request(features=[float("inf")] * DIMENSIONS), "undecodable"),
    Bad("1e999", request().replace(b"[0.5", b"[1e999"), "range"),
    Bad("a huge feature", request(features=[1e30, *FLOATS[1:]]), "range"),
    Bad("a negative count", request(input_tokens=-1), "range"),
    Bad("an absurd count", request(max_output_tokens=10**12), "range"),
    Bad("a count of 20 digits", request(max_output_tokens=10**19), "range"),
    Bad("NUL in an id", request(request_id="a\0b"), "range"),
    Bad("NUL in a prompt", request(prompt=f"{CANARY}\0"), "nul"),
    Bad("a lone surrogate", request(prompt="\ud800"), "undecodable"),
    Bad("a prompt of 1 MB", request(prompt=CANARY * 95_000), "too_large"),
    Bad("too few features", request(features=FLOATS[1:]), "feature_length"),
    Bad("a prompt and features", request(prompt=CANARY, features=FLOATS), "features"),
    Bad("neither of them", request(features=...), "features"),
    Bad("no base64", request(features_b64="?" + CANARY), "features"),
    Bad("base64 of broken floats", request(features_b64="AAAA"), "features"),
    Bad("NaN in base64", request(features_b64=floats_b64([np.nan, *FLOATS[1:]])), "range"),
    Bad("an unknown arm", request(arms=["gpt-0@nowhere"]), "unknown_arm"),
    Bad("an unknown budget", request(budget=f"{ROOT}/team/zzz"), "unknown_budget"),
    Bad("the key of another root", request(), "wrong_key", key=b"else"),
    Bad("no key", request(), "wrong_key", key=None),
    Bad("another partition", request(segment="elsewhere"), "wrong_partition", shift=1),
    Bad("a deadline that is past", request(request_id="late", deadline_ms=1), "deadline_past"),
    Bad("a newer schema, still wrong", request(v=2, new=1, input_tokens=-1), "range"),
    Bad("a used id, another content", request(request_id="good-0", segment="x"), "conflict"),
]


def outcome(**fields: Any) -> bytes:
    return json.dumps({"request_id": "good-0", **fields}).encode()


USAGE = {"prompt_tokens": 10, "completion_tokens": 5}
OUTCOMES = [
    Bad("bytes that are no text", b"\xfe" + CANARY.encode(), "undecodable"),
    Bad("no value", None, "empty"),
    Bad("an unknown field", outcome(usage=USAGE, cost=1), "unknown_field"),
    Bad("an unknown field of usage", outcome(usage={**USAGE, "reasoning": 1}), "unknown_field"),
    Bad("more cached than there are", outcome(usage={**USAGE, "cached_tokens": 11}), "range"),
    Bad("a reward above one", outcome(reward=1.01), "range"),
    Bad("a reward below zero", outcome(reward=-0.5), "range"),
    Bad("a reward that is no number", b'{"request_id":"good-0","reward":NaN}', "undecodable"),
    Bad("a negative cost", outcome(cost_nanousd=-1), "range"),
    Bad("an absurd cost", outcome(cost_nanousd=2 * 10**15 + 1), "range"),
    Bad("an absurd count", outcome(usage={**USAGE, "completion_tokens": 10**9}), "range"),
    Bad("nothing said", outcome(), "empty_outcome"),
    Bad("another decision", outcome(reward=1.0, decision_id="0" * 32), "other_decision"),
    Bad("another usage", outcome(usage={**USAGE, "completion_tokens": 6}), "conflict"),
    Bad("another reward", outcome(reward=0.125), "conflict"),
    Bad("of a rejection", outcome(request_id="late", usage=USAGE), "rejected_request"),
]
CATALOG = [
    Bad("bytes that are no text", b"\xff" + CANARY.encode(), "undecodable"),
    Bad("nested without end", b"[" * 100_000, "wrong_type"),
    Bad("a price of zero",
        b'{"kind":"price","arm":"small@a","version":9,"input":0,"output":0}', "price"),
    Bad("a negative price",
        b'{"kind":"price","arm":"small@a","version":9,"input":-1,"output":1}', "range"),
    Bad("a version beyond 64 bits",
        b'{"kind":"price","arm":"small@a","version":99999999999999999999,"input":1,"output":1}',
        "range"),
    Bad("an unknown policy", b'{"kind":"policy","policy":"astrology"}', "policy"),
    Bad("an unknown option", b'{"kind":"policy","options":{"astrology":1}}', "policy"),
    Bad("a negative seed", b'{"kind":"policy","seed":-1}', "range"),
    Bad("an unknown kind", b'{"kind":"planet"}', "range"),
    Bad("an unknown window",
        b'{"kind":"budget","budget":"bad","limit_nanousd":1,"window":"fortnight"}', "range"),
]  # fmt: skip


async def test_bad_records_are_dead_lettered_and_the_good_ones_between_go_on(
    deployment: Deployment,
) -> None:
    root = await deployment.new_root(ROOT)
    counted = deployment.workers[0].metric("tollway_dead_letters_total")
    goods = [make_request(root, f"good-{n}") for n in range(12)]
    newer = json.loads(encode(make_request(root, "good-newer")))
    newer_value = json.dumps({**newer, "v": 2, "priority": {"of": "later"}}).encode()

    first = await deployment.send(goods[0])
    sent = []
    for bads, good in zip(chunks(REQUESTS[:-1]), goods[1:4], strict=True):
        sent += await send(deployment, topics.REQUESTS, bads)
        await deployment.send(good)
    await deployment.send(*goods[4:], goods[0])
    await deployment.produce([(topics.REQUESTS, root.encode(), newer_value)])
    sent += await send(deployment, topics.REQUESTS, REQUESTS[-1:])
    decided = await deployment.wait_decided([*(g.request_id for g in goods), "good-newer", "late"])

    good = [d for name, d in decided.items() if name != "late"]
    assert all(d.arm is not None and d.rejected is None for d in good)
    assert decided["late"].rejected == "deadline"
    assert decided["good-0"].offsets.request == first[0][2]

    await deployment.report(root, *(answer(d) for d in good))
    later = json.loads(encode(answer(decided["good-0"])))
    later.update(v=2, rated_by="judge-2", usage={**later["usage"], "reasoning_tokens": 3})
    await deployment.produce([(topics.OUTCOMES, root.encode(), json.dumps(later).encode())])
    sent += await send(deployment, topics.OUTCOMES, OUTCOMES)
    sent += await send(deployment, topics.CATALOG, CATALOG)

    letters = await deployment.wait_dead([place for _, place in sent])
    await deployment.settled()
    for bad, place in sent:
        (letter,) = letters[place]
        assert letter.reason == bad.reason, (bad.rule, letter)
        assert letter.sha256 == hashlib.sha256(bad.value or b"").hexdigest(), bad.rule
        assert letter.size == len(bad.value or b""), bad.rule
    assert deployment.workers[0].metric("tollway_dead_letters_total") - counted == len(sent)
    raw = b"".join(r.value or b"" for r in await deployment.read_all(topics.DEAD_LETTERS))
    assert CANARY.encode() not in raw
    logs = "".join(p.log.read_text() for p in [*deployment.workers, *deployment.sinks])
    assert CANARY not in logs

    # A kill: everything is there already and nothing comes twice.
    deployment.restart(deployment.workers[0])
    await deployment.settled(timeout_s=90)
    after = await deployment.dead_letters()
    assert {place: len(found) for place, found in after.items()} == {place: 1 for place in after}
    assert set(after) >= {place for _, place in sent}
    assert all(len(after[place]) == 1 for _, place in sent)
    report = await deployment.verify()
    assert report.ok, report.findings
    # The bad entries left the catalog as it was.
    assert (await probe(deployment, root, "after-catalog")).price is not None


async def probe(deployment: Deployment, root: str, name: str) -> Decision:
    await deployment.send(make_request(root, name, arms=["small@a"]))
    decision = (await deployment.wait_decided([name]))[name]
    assert decision.arm == "small@a"
    assert decision.price is not None
    assert (decision.price.version, decision.price.input) == (1, 100_000)
    assert decision.policy == "pareto"
    return decision


def chunks(bads: list[Bad]) -> list[list[Bad]]:
    """Divide records in three."""
    third = -(-len(bads) // 3)
    return [bads[:third], bads[third : 2 * third], bads[2 * third :]]


async def send(
    deployment: Deployment, topic: str, bads: list[Bad]
) -> list[tuple[Bad, tuple[str, int, int]]]:
    """Send bad records and return each with its place."""
    home = deployment.partition_of(ROOT)
    partitions = [
        0 if topic == topics.CATALOG
        else (home + bad.shift) % deployment.partitions if bad.shift or bad.key is None
        else None
        for bad in bads
    ]  # fmt: skip
    places = await deployment.produce(
        (topic, bad.key, bad.value, partition)
        for bad, partition in zip(bads, partitions, strict=True)
    )
    return list(zip(bads, places, strict=True))


async def test_an_outcome_before_its_request_is_parked_and_then_counts(
    deployment: Deployment,
) -> None:
    root = await deployment.new_root("early")
    usage = Usage(prompt_tokens=100, completion_tokens=7)
    early = Outcome(
        request_id="first", decision_id=decision_id(root, "first"), usage=usage, reward=0.5
    )
    (parked,) = await deployment.report(root, early)
    # What was parked is not forgotten by a kill.
    deployment.restart(deployment.workers[0])
    await deployment.send(make_request(root, "first"))
    decision = (await deployment.wait_decided(["first"], timeout_s=90))["first"]
    other = Usage(prompt_tokens=100, completion_tokens=8)
    (conflict,) = await deployment.report(root, Outcome(request_id="first", usage=other))
    letters = await deployment.wait_dead([conflict])
    assert letters[conflict][0].reason == "conflict"
    assert parked not in letters
    await deployment.send(make_request(root, "second"))
    position = (await deployment.wait_decided(["second"]))["second"].budgets[0]
    price = decision.price
    assert price is not None
    assert position.settled_nanousd == -(-(100 * price.input + 7 * price.output) // 1_000)
    assert (await deployment.verify()).ok
