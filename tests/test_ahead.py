"""What waits for an agent: one batch at a time, in order, bounded."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from faust.types import TP
from hypothesis import given
from hypothesis import strategies as st

from streams.faust_batches.ahead import BYTES_MAX, WORTH_IT, Ahead
from streams.faust_batches.delivery import DeliveringConsumer

QUICK, SLOW = TP("quick", 0), TP("slow", 0)


def make_ahead(records_max: int = 1_000) -> Ahead:
    return Ahead(records_max=records_max, linger_s={"slow": 0.5})


def records(first: int, count: int, size: int = 1) -> list[Any]:
    return [SimpleNamespace(offset=first + i, value=b"x" * size) for i in range(count)]


def offsets(found: Sequence[Any]) -> list[int]:
    return [record.offset for record in found]


def test_what_comes_while_the_agent_works_is_its_next_batch() -> None:
    ahead = make_ahead()
    assert ahead.take(QUICK, at=0.0) == []
    ahead.put(QUICK, records(0, 1))
    assert offsets(ahead.take(QUICK, at=0.0)) == [0]
    ahead.put(QUICK, records(1, 1))
    ahead.put(QUICK, records(2, 2))
    assert ahead.take(QUICK, at=0.0) == []
    ahead.finished(QUICK, 7)
    assert ahead.take(QUICK, at=0.0) == []
    ahead.finished(QUICK, 0)
    assert offsets(ahead.take(QUICK, at=0.0)) == [1, 2, 3]
    assert ahead.count(QUICK) == 0


def test_a_partition_of_which_enough_waits_is_full() -> None:
    ahead = make_ahead(records_max=3)
    ahead.put(QUICK, records(0, 2))
    assert not ahead.is_full(QUICK)
    ahead.put(QUICK, records(2, 2))
    assert ahead.is_full(QUICK)
    assert offsets(ahead.take(QUICK, at=0.0)) == [0, 1, 2]
    assert not ahead.is_full(QUICK)
    ahead.put(SLOW, records(0, 1, size=BYTES_MAX))
    assert ahead.is_full(SLOW)
    ahead.take(SLOW, at=0.0)
    assert not ahead.is_full(SLOW)


def test_a_partition_rests_after_a_batch_where_the_topic_says_so() -> None:
    ahead = make_ahead()
    ahead.put(SLOW, records(0, 1))
    assert offsets(ahead.take(SLOW, at=1.0)) == [0]
    ahead.finished(SLOW, 0)
    ahead.put(SLOW, records(1, 1))
    assert ahead.rests_s(SLOW, at=1.2) == 0.5 - (1.2 - 1.0)
    assert ahead.take(SLOW, at=1.2) == []
    assert offsets(ahead.take(SLOW, at=1.5)) == [1]
    ahead.finished(SLOW, 1)
    ahead.put(SLOW, records(2, WORTH_IT))
    assert ahead.rests_s(SLOW, at=1.6) == 0.0
    assert len(ahead.take(SLOW, at=1.6)) == WORTH_IT


def test_after_a_stopped_flow_nothing_is_left_that_could_keep_a_partition_back() -> None:
    ahead = make_ahead(records_max=2)
    ahead.put(SLOW, records(0, 5))
    ahead.take(SLOW, at=0.0)
    ahead.clear()
    assert not ahead.is_full(SLOW)
    ahead.put(SLOW, records(0, 1))
    assert offsets(ahead.take(SLOW, at=0.0)) == [0]


def test_a_stopped_flow_drops_what_waits_because_it_is_read_again() -> None:
    consumer = DeliveringConsumer.__new__(DeliveringConsumer)
    consumer.epoch, consumer._ahead = 0, make_ahead()
    consumer.can_resume_flow, consumer.suspend_flow = asyncio.Event(), asyncio.Event()
    consumer._thread = SimpleNamespace(wake=lambda: None)  # type: ignore[assignment]
    consumer._ahead.put(QUICK, records(0, 3))
    consumer.stop_flow()
    assert consumer.waiting(QUICK) == 0
    assert consumer.epoch == 1


@given(st.lists(st.one_of(st.integers(1, 7), st.just("take"), st.just("finish"))))
def test_every_record_is_taken_once_and_in_order(steps: list[Any]) -> None:
    ahead, fetched, taken, last = make_ahead(records_max=5), 0, [], -1
    for step in [*steps, *["finish", "take"] * 20]:
        if step == "take":
            batch = ahead.take(QUICK, at=0.0)
            assert len(batch) <= 5
            taken += offsets(batch)
            last = batch[-1].offset if batch else last
        elif step == "finish":
            ahead.finished(QUICK, last)
        elif not ahead.is_full(QUICK):
            ahead.put(QUICK, records(fetched, step))
            fetched += step
        assert ahead.count(QUICK) == fetched - len(taken)
    assert taken == list(range(len(taken)))
    assert len(taken) == fetched
