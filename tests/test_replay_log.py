"""The parts of a replay that need no broker; ``test_worker`` replays a real log."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from streams.records import Decision, Seen, encode
from streams.replay_log.compare import differs
from streams.replay_log.histories import Kept
from streams.replay_log.rounds import Assembler, Placed


@pytest.mark.parametrize(
    ("records", "offset", "lost"),
    [
        pytest.param("0a 1b 2a", 2, None, id="nothing-is-missing"),
        pytest.param("0a 3a 4b", 1, None, id="what-is-missing-came-later"),
        pytest.param("0a 3a 4b", 2, b"a", id="between-two-of-a-key-something-is-missing"),
        pytest.param("0a 3a", 4, None, id="the-last-of-a-key-is-always-kept"),
        pytest.param("2a 3b 5b", 4, None, id="what-is-missing-was-older-than-what-is-known"),
        pytest.param("1a 2b 5b", 2, b"b", id="a-key-of-which-nothing-older-is-left"),
    ],
)
def test_what_compaction_took_is_told(records: str, offset: int, lost: bytes | None) -> None:
    kept = Kept()
    for record in records.split():
        kept.add(SimpleNamespace(offset=int(record[0]), key=record[1:].encode()))
    assert kept.lost_at(offset) == lost


def placed(offset: int, first: int, request: int) -> Placed:
    """Return a decision whose round was to begin at ``first``."""
    seen = Seen(request, request, 0, 0, 0, decisions=first)
    decision = Decision(
        decision_id=f"d{request}", request_id=f"r{request}", budget="a", decided_ms=1, offsets=seen
    )
    record = SimpleNamespace(value=encode(decision), headers=(), offset=offset)
    return Placed(offset, record, decision)


def test_decisions_of_one_call_are_put_together_wherever_they_lie() -> None:
    # At 3 another worker writes, which had read only up to 1, and decides request 12 too.
    log = [placed(0, 0, 10), placed(1, 1, 11), placed(2, 1, 12), placed(3, 2, 12),
           placed(4, 1, 13), placed(5, 5, 14), placed(6, 5, 12)]  # fmt: skip
    assembler = Assembler()
    for item in log:
        assembler.add(item)
    segments = list(assembler.take_whole(7))
    assert [[item.offset for item in s.items] for s in segments] == [[0], [1, 2], [3], [4], [5, 6]]
    rounds = [s.round for s in segments]
    assert rounds[1] is rounds[3]
    assert [r.in_place for r in rounds] == [True, False, False, False, True]


def test_a_round_waits_until_it_must_be_whole() -> None:
    assembler = Assembler()
    for item in (placed(0, 0, 10), placed(1, 0, 11), placed(2, 2, 12)):
        assembler.add(item)
    assert [len(s.items) for s in assembler.take_whole(2)] == [2]
    assert [len(s.items) for s in assembler.take_whole(3)] == [1]


def test_the_same_request_in_the_same_place_is_another_round() -> None:
    assembler = Assembler()
    for item in (placed(0, 0, 10), placed(1, 0, 10)):
        assembler.add(item)
    first, second = assembler.take_whole(2)
    assert first.round.in_place
    assert not second.round.in_place


def changed(item: Placed, **fields: Any) -> bytes:
    """Return a record with other fields."""
    decision = item.decision
    assert decision is not None
    for name, value in fields.items():
        setattr(decision, name, value)
    return encode(decision)


def test_a_difference_names_the_fields() -> None:
    item = placed(4, 4, 1)
    assert differs(0, item, item.record.value, ()) is None
    found = differs(0, item, changed(item, reward=0.5, segment="x"), ())
    assert found is not None
    assert found.fields == {"reward": (None, 0.5), "segment": (None, "x")}
    headers = differs(0, item, item.record.value, [("traceparent", b"00")])
    assert headers is not None
    assert headers.fields == {"headers": ({}, {"traceparent": "00"})}


def test_what_is_no_json_or_not_decided_again_differs() -> None:
    item = placed(4, 4, 1)
    spaced = item.record.value.replace(b":", b": ", 1)
    found = [differs(0, item, None, ()), differs(0, item, spaced, ())]
    assert [f.reason for f in found if f] == [
        "is not decided here when made anew", "the same fields in other bytes",
    ]  # fmt: skip
    broken = Placed(4, SimpleNamespace(value=b"{", headers=()), None)
    assert getattr(differs(0, broken, b"{}", ()), "reason", "") == "is no JSON object"
