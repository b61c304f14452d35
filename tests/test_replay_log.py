"""The parts of a replay that need no broker; ``test_worker`` replays a real log."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from streams.records import Decision, Seen, encode
from streams.replay_log.compare import differs
from streams.replay_log.histories import Kept
from streams.replay_log.rounds import Placed, rounds_of


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


def test_decisions_of_one_call_are_put_together() -> None:
    # An owner's marker lies at 3; a round that a kill has torn, at 5, was decided on in full.
    log = [placed(0, 0, 10), placed(1, 1, 11), placed(2, 1, 12), placed(4, 4, 13),
           placed(5, 5, 14), placed(6, 6, 15), placed(7, 6, 16)]  # fmt: skip
    for cut in range(len(log) + 1):
        *whole, last = rounds_of(log[:cut]) if cut else [None]
        rounds = [*whole, *rounds_of(log[cut:], last)]
        offsets = [[item.offset for item in r.items] for r in rounds if r]
        assert offsets == [[0], [1, 2], [4], [5], [6, 7]]
        assert all(r.in_place for r in rounds if r)


@pytest.mark.parametrize(
    ("log", "in_place"),
    [
        pytest.param([(0, 0, 10), (1, 9, 11), (2, 0, 12)], [True, False, False], id="one-changed"),
        pytest.param([(0, 0, 10), (1, 0, 10)], [True, False], id="a-request-twice"),
        pytest.param([(0, 3, 10), (1, 3, 11)], [False], id="all-displaced"),
        pytest.param([(0, 0, 10), (2, 0, 11)], [False], id="a-gap"),
    ],
)
def test_what_does_not_lie_where_it_says_is_told(
    log: list[tuple[int, int, int]], in_place: list[bool]
) -> None:
    assert [r.in_place for r in rounds_of(placed(*at) for at in log)] == in_place


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
