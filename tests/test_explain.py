"""Explanations in words, from records made by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from policy.catalog import Catalog
from policy.money import Price
from policy.terms import Arm
from streams import topics
from streams.explain.money import told
from streams.explain.report import explain, status
from streams.explain.trace import Conflict, Placed, Trace, Transfer
from streams.explain.trace_reader import is_about, partition_of
from streams.records import (
    BudgetPosition,
    Candidate,
    Candidates,
    DeadLetter,
    Decision,
    Outcome,
    PriceTag,
    Request,
    Seen,
    Usage,
    decision_id,
)

AT_MS = 1_763_787_845_000
TTL_MS = 600_000

REQUEST = Request(
    request_id="r1",
    budget="acme/search/k1",
    input_tokens=100,
    max_output_tokens=1_000,
    prompt="x" * 300,
    capabilities=["json"],
)
DECISION = Decision(
    decision_id=decision_id("acme", "r1"),
    request_id="r1",
    budget="acme/search/k1",
    decided_ms=AT_MS + 40,
    offsets=Seen(request=7, batch=7, outcomes=3, catalog=11, statistics=5),
    arm="small@x",
    input_tokens=100,
    max_output_tokens=1_000,
    reserved_nanousd=615_000,
    expires_ms=AT_MS + 40 + TTL_MS,
    price=PriceTag(version=3, input=150_000, output=600_000),
    reward=0.8,
    cost_nanousd=200_000,
    propensity=1.0,
    policy="pareto",
    features="given",
    candidates=Candidates.of(
        [
            Candidate("large@y", 0.9, 4_000_000, 12_000_000, 0.52, "score"),
            Candidate("small@x", 0.8, 200_000, 615_000, 0.8, ""),
            Candidate("plain@x", 0.7, 100_000, 300_000, None, "capability"),
            Candidate("free@z", 0.5, 0, 0, None, "unpriced"),
        ]
    ),
    budgets=[
        BudgetPosition("acme", AT_MS, 10**10, 10**9, 2 * 10**9, 12.5, 0.001),
        BudgetPosition("acme/search/k1", AT_MS, 10**9, 615_000, 0, 100.0, 0.0005),
    ],
)


def placed(record: Any, offset: int = 7, after_ms: int = 0) -> Placed[Any]:
    topic = {
        Request: topics.REQUESTS,
        Decision: topics.DECISIONS,
        Outcome: topics.OUTCOMES,
        DeadLetter: topics.DEAD_LETTERS,
    }[type(record)]
    return Placed(topic=topic, partition=2, offset=offset, at_ms=AT_MS + after_ms, record=record)


def make_trace(decision: Decision | None = DECISION, **more: Any) -> Trace:
    arms = (Arm(arm="plain@x", price=Price(version=1, input=1, output=1)),)
    fields: dict[str, Any] = {
        "request_id": "r1",
        "root": "acme",
        "request": placed(REQUEST),
        "decision": None if decision is None else placed(decision, 4, after_ms=52),
        "catalog": Catalog(arms=arms),
        "partition_of_key": 2,
    }
    return Trace(**{**fields, **more})


def outcome(offset: int, after_ms: int = 1_000, **fields: Any) -> Placed[Outcome]:
    return placed(Outcome(request_id="r1", **fields), offset, after_ms=after_ms)


def letter(topic: str, offset: int, reason: str, detail: str = "…") -> Placed[DeadLetter]:
    record = DeadLetter(
        topic=topic, partition=2, offset=offset, reason=reason, detail=detail, sha256="", size=1,
        at_ms=AT_MS,
    )  # fmt: skip
    return placed(record, 0)


def words(trace: Trace) -> str:
    return "\n".join(line for s in explain(trace) for line in (s.title, *s.lines))


def changed(**more: Any) -> Decision:
    return msgspec.structs.replace(DECISION, **more)


def test_the_choice_is_told_against_the_runner_up_at_the_dual_price() -> None:
    text = words(make_trace())
    assert "expected reward 0.800 for $0.000200, worth 0.780" in text
    assert "λ = 100 reward per dollar, set by budget acme/search/k1" in text
    assert "runner-up: large@y, reward 0.900 - 100 x $0.004000 = 0.500 (-0.280)" in text
    assert "+0.020 here, +0.020 for the runner-up" in text
    assert "reserved $0.000615, the most that 100 input and 1,000 output tokens" in text
    assert "price version 3 ($0.15 in, $0.6 out" in text
    assert "52 ms after it was asked" in text


def test_every_arm_has_its_reason() -> None:
    table = next(s.lines for s in explain(make_trace()) if s.title == "Arms")
    cells = [line.split(maxsplit=5) for line in table[1:]]
    assert [(row[0], row[-1]) for row in cells] == [
        ("small@x", "chosen"),
        ("large@y", "its score is 0.280 lower"),
        ("free@z", "it has no price in the catalog"),
        ("plain@x", "it cannot json"),
    ]
    # The cost of an arm without a price is unknown, not zero.
    assert cells[2][2:5] == ["-", "-", "-"]


def test_budgets_stand_with_their_positions() -> None:
    text = words(make_trace())
    assert "acme: $2.0000 settled + $1.0000 reserved = 30.0 % of $10.0000" in text
    assert "λ 12.5, $0.001000 a request planned" in text


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        pytest.param({"explored": True, "propensity": 0.04}, "probability 4.0%", id="explored"),
        pytest.param(
            {"max_output_tokens": 512},
            "lowered from 1,000 to 512 tokens",
            id="output-cap-lowered",
        ),
        pytest.param(
            {"policy": "threshold"},
            "policy threshold scores them 0.800 and 0.520",
            id="another-policy's-score",
        ),
        pytest.param({"budgets": []}, "λ = 0: money was no constraint", id="no-dual-price"),
    ],
)
def test_special_decisions_are_told(more: dict[str, Any], expected: str) -> None:
    assert expected in words(make_trace(changed(**more)))


def test_a_better_arm_that_did_not_fit_is_named_with_its_bound() -> None:
    candidates = list(DECISION.candidates)
    candidates[0] = Candidate("large@y", 0.9, 4_000_000, 12_000_000, 0.95, "cap")
    text = words(make_trace(changed(candidates=Candidates.of(candidates))))
    assert "preferred, but passed over: large@y" in text
    assert "its bound of $0.012000 did not fit into the budgets" in text


def test_waiting_is_stated_only_where_it_shows() -> None:
    late = changed(decided_ms=AT_MS + 5_000)
    assert "it waited 5.0 s for money in flight; later requests" in words(
        make_trace(late, overtaken=True)
    )
    assert "or the worker came late to it" in words(make_trace(late))
    assert "waited" not in words(make_trace())


def test_a_rejection_says_why_and_reserves_nothing() -> None:
    rejected = changed(
        arm=None, rejected="budget_busy", price=None, reserved_nanousd=0, expires_ms=0,
        decided_ms=AT_MS + 30_000,
    )  # fmt: skip
    trace = make_trace(rejected)
    assert status(trace) == "rejected"
    assert "did not come back while it waited; nothing is reserved" in words(trace)
    assert "it waited 30.0 s for money in flight" in words(trace)
    late = make_trace(rejected, outcomes=[outcome(1, usage=Usage(1, 1))])
    assert "but the request was rejected, without effect" in words(late)


def test_usage_settles_reward_teaches_and_copies_do_nothing() -> None:
    trace = make_trace(
        outcomes=[
            outcome(1, usage=Usage(100, 200, 50)),
            outcome(2, reward=0.9, latency_ms=800),
            outcome(3, usage=Usage(100, 200, 50)),
            outcome(4, reward=0.2),
        ]
    )
    story = told(trace)
    assert (story.status, story.cost_nanousd) == ("settled", 135_000)
    assert story.effects == {
        1: ["settles"],
        2: ["teaches"],
        3: ["the usage says the same again, without effect"],
        4: ["the reward contradicts the reward that came first, without effect"],
    }
    assert "cost $0.000135: 22.0 % of what was reserved, $0.000200 was expected" in words(trace)
    assert explain(trace)[0].title == "r1 of acme: small@x, cost $0.000135"


def test_cost_beyond_the_reservation_is_overrun() -> None:
    trace = make_trace(outcomes=[outcome(1, cost_nanousd=1_000_000)])
    assert "$0.000385 of that is overrun, beyond the reservation" in words(trace)


def test_an_open_reservation_says_until_when() -> None:
    trace = make_trace()
    assert status(trace) == "open"
    assert "no usage yet: $0.000615 are held" in words(trace)


def test_expiry_shows_by_the_ledger_or_by_a_late_outcome() -> None:
    expire = Transfer(
        kind="expire", debit_account="expired:acme", credit_account="reserved:acme",
        amount_nanousd=615_000, event_ms=AT_MS, line=9,
    )  # fmt: skip
    expired = make_trace(transfers=[expire], ledger_row={"arm": "small@x"})
    assert status(expired) == "expired"
    assert "counts as spent" in words(expired)
    assert "line 9: expire $0.000615, reserved:acme -> expired:acme" in words(expired)
    late = make_trace(outcomes=[outcome(1, after_ms=TTL_MS + 50, usage=Usage(100, 200))])
    assert status(late) == "settled"
    assert "had expired" in words(late)
    assert "the usage trued it up" in words(late)


def test_a_refused_request_has_reason_advice_and_place() -> None:
    trace = make_trace(
        None, dead_letters=[letter(topics.REQUESTS, 7, "unknown_budget", "budget 'x'\x1b[2J")]
    )
    assert status(trace) == "refused"
    text = words(trace)
    assert "refused, unknown_budget; it has no decision and costs nothing" in text
    assert f"{topics.REQUESTS}/2/7: unknown_budget, budget 'x'\\x1b[2J" in text
    assert "declared below acme: nothing" in text


def test_an_unreadable_request_is_told_without_its_content() -> None:
    broken = replace(placed(REQUEST), record=None, problem="wrong_type: Expected `int`")
    trace = make_trace(None, request=broken, dead_letters=[letter(topics.REQUESTS, 7, "range")])
    assert "the record cannot be read: wrong_type: Expected `int`" in words(trace)
    assert "xxx" not in words(trace)


def test_a_request_without_decision_waits() -> None:
    trace = make_trace(None)
    assert status(trace) == "undecided"
    assert "received, not decided yet" in words(trace)


def test_outcomes_without_a_decision_are_parked_or_refused() -> None:
    outcomes = [outcome(4, reward=0.5), outcome(6, usage=Usage(1, 1))]
    letters = [letter(topics.OUTCOMES, 4, "unknown_request", "no decision came for it")]
    waiting = make_trace(None, outcomes=outcomes, dead_letters=letters)
    assert status(waiting) == "undecided"
    where = f"2 outcomes lie in {topics.OUTCOMES}/2: 1 parked, 1 refused, unknown_request"
    assert explain(waiting)[0].title == f"r1 of acme: received, not decided yet; {where}"

    stray = make_trace(None, request=None, outcomes=outcomes, dead_letters=letters)
    assert status(stray) == "unasked"
    assert f"not decided, no topic holds a request of this id; {where}" in words(stray)
    assert "reward 0.5: refused, unknown_request" in words(stray)
    assert "1 prompt tokens and 1 completion tokens: parked\nwhat is parked is refused" in words(
        stray
    )
    assert "no decision for this request came in time" in words(stray)
    one = make_trace(None, request=None, outcomes=outcomes[1:])
    assert f"1 outcome lies in {topics.OUTCOMES}/2: 1 parked" in words(one)
    # With a decision the books say what an outcome did.
    assert "parked" not in words(make_trace(outcomes=outcomes))


def test_an_unknown_id_says_where_was_looked() -> None:
    trace = Trace(request_id="r9", searched=["tollway.requests.v1/0 from 0 to 12"])
    assert status(trace) == "unknown"
    assert "no topic and no ledger holds a record of this id" in words(trace)
    assert "tollway.requests.v1/0 from 0 to 12" in words(trace)


def test_the_ledger_alone_tells_what_it_knows() -> None:
    row = {
        "arm": "small@x", "rejected": None, "budget": "acme/search/k1", "policy": "pareto",
        "decided_ms": AT_MS, "expected_reward": 0.8, "expected_nanousd": 200_000,
        "reserved_nanousd": 615_000, "price_version": 3,
    }  # fmt: skip
    trace = make_trace(None, request=None, ledger_row=row)
    assert status(trace) == "open"
    assert "its decision is no longer in the topic" in words(trace)
    assert "expected reward 0.800 for $0.000200; $0.000615 reserved" in words(trace)


def test_ledger_conflicts_and_problems_are_told() -> None:
    conflict = Conflict(
        topic=topics.OUTCOMES, partition=2, offset=4, part="reward", reason="other_reward"
    )
    assert "the reward does not count, other_reward" in words(make_trace(conflicts=[conflict]))
    assert "not booked yet" in words(make_trace())
    refused = replace(conflict, topic=topics.DECISIONS, part="decision", reason="other_content")
    assert "not booked yet" not in words(make_trace(conflicts=[refused]))
    problem = words(make_trace(ledger_problem="connection failed"))
    assert "the ledger could not be asked: connection failed" in problem


def test_a_key_in_a_foreign_partition_is_told() -> None:
    assert "not Kafka's murmur2" in words(make_trace(partition_of_key=1))
    assert "murmur2" not in words(make_trace())


def test_the_dict_is_json() -> None:
    trace = make_trace(outcomes=[outcome(1, usage=Usage(1, 1))])
    fields = msgspec.json.decode(msgspec.json.encode(trace.as_dict()))
    assert fields["decision"]["record"]["arm"] == "small@x"
    assert fields["request"]["record"]["prompt"] == "x" * 300


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param(b'{"v":1,"request_id":"a.b","x":1}', True, id="field"),
        pytest.param(b'{"request_id" : "a.b"', True, id="broken"),
        pytest.param(b'{"request_id":"axb"}', False, id="dot-is-no-wildcard"),
        pytest.param(b'{"request_id":"a.bc"}', False, id="longer"),
        pytest.param(b'{"prompt":"a.b"}', False, id="elsewhere"),
        pytest.param(None, False, id="no-value"),
    ],
)
def test_a_record_is_about_the_request_it_names(value: bytes | None, expected: bool) -> None:
    assert is_about(value, "a.b") is expected


def test_partitions_are_those_of_kafkas_own_partitioner() -> None:
    # murmur2 of "21" and "foobar" as Kafka's own UtilsTest has them.
    assert partition_of("21", range(1_000)) == (-973932308 & 0x7FFFFFFF) % 1_000
    assert partition_of("foobar", range(1_000)) == (-790332482 & 0x7FFFFFFF) % 1_000
