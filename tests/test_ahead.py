"""What waits for an agent: one batch at a time, the oldest first, in order, bounded."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

from faust.types import TP
from hypothesis import given
from hypothesis import strategies as st

from streams.faust_batches.ahead import BYTES_MAX, WORTH_IT, Ahead
from streams.faust_batches.delivery import DeliveringConsumer

QUICK, OTHER, SLOW = TP("quick", 0), TP("quick", 1), TP("slow", 0)
ALL = frozenset({QUICK, OTHER, SLOW})


def make_ahead(records_max: int = 1_000) -> Ahead:
    return Ahead(records_max=records_max, linger_s={"slow": 0.5})


def records(first: int, count: int, size: int = 1) -> list[Any]:
    return [SimpleNamespace(offset=first + i, value=b"x" * size) for i in range(count)]


def put(ahead: Ahead, tp: TP, first: int, count: int, size: int = 1) -> None:
    ahead.put(tp, records(first, count, size), epoch=ahead.epoch)


def take(
    ahead: Ahead, topic: str, at: float = 0.0, among: frozenset[TP] = ALL
) -> tuple[TP, list[int]] | None:
    taken = ahead.take(topic, among=among, at=at)
    return None if taken is None else (taken.tp, [record.offset for record in taken.records])


def test_what_comes_while_the_agent_works_is_its_next_batch() -> None:
    ahead = make_ahead()
    assert take(ahead, "quick") is None
    put(ahead, QUICK, 0, 1)
    assert take(ahead, "quick") == (QUICK, [0])
    put(ahead, QUICK, 1, 1)
    put(ahead, QUICK, 2, 2)
    assert take(ahead, "quick") is None
    ahead.finished(QUICK, 7)
    ahead.finished(OTHER, 0)
    assert take(ahead, "quick") is None
    ahead.finished(QUICK, 0)
    assert take(ahead, "quick") == (QUICK, [1, 2, 3])
    assert ahead.count(QUICK) == 0


def test_the_partition_that_has_waited_longest_is_next_with_all_that_came_since() -> None:
    ahead = make_ahead(records_max=3)
    put(ahead, OTHER, 0, 1)
    put(ahead, QUICK, 0, 5)
    put(ahead, OTHER, 1, 1)
    assert take(ahead, "quick") == (OTHER, [0, 1])
    put(ahead, OTHER, 2, 1)
    ahead.finished(OTHER, 1)
    assert take(ahead, "quick") == (QUICK, [0, 1, 2])
    ahead.finished(QUICK, 2)
    # What is left of a partition waits behind the others.
    assert take(ahead, "quick") == (OTHER, [2])
    ahead.finished(OTHER, 2)
    assert take(ahead, "quick") == (QUICK, [3, 4])


def test_agents_of_different_topics_work_at_the_same_time() -> None:
    ahead = make_ahead()
    put(ahead, QUICK, 0, 1)
    put(ahead, SLOW, 0, 1)
    assert take(ahead, "quick") == (QUICK, [0])
    assert take(ahead, "slow") == (SLOW, [0])


def test_a_partition_that_is_paused_is_passed_over() -> None:
    ahead = make_ahead()
    put(ahead, QUICK, 0, 1)
    put(ahead, OTHER, 0, 1)
    assert take(ahead, "quick", among=frozenset({OTHER})) == (OTHER, [0])
    ahead.finished(OTHER, 0)
    assert take(ahead, "quick", among=frozenset({OTHER})) is None
    assert ahead.rests_s("quick", among=frozenset({OTHER}), at=0.0) is None


def test_a_partition_of_which_enough_waits_has_no_room() -> None:
    ahead = make_ahead(records_max=3)
    put(ahead, QUICK, 0, 2)
    assert ahead.room({QUICK}) == {QUICK}
    put(ahead, QUICK, 2, 2)
    assert ahead.room({QUICK, OTHER}) == {OTHER}
    taken = ahead.take("quick", among=ALL, at=0.0)
    assert taken is not None and taken.was_full
    assert ahead.room({QUICK}) == {QUICK}
    put(ahead, SLOW, 0, 1, size=BYTES_MAX)
    assert ahead.room({SLOW}) == set()
    ahead.take("slow", among=ALL, at=0.0)
    assert ahead.room({SLOW}) == {SLOW}
    ahead.finished(QUICK, 2)
    taken = ahead.take("quick", among=ALL, at=0.0)
    assert taken is not None and not taken.was_full


def test_a_partition_rests_after_a_batch_where_the_topic_says_so() -> None:
    ahead = make_ahead()
    put(ahead, SLOW, 0, 1)
    assert take(ahead, "slow", at=1.0) == (SLOW, [0])
    assert ahead.rests_s("slow", among=ALL, at=1.2) is None
    ahead.finished(SLOW, 0)
    put(ahead, SLOW, 1, 1)
    assert ahead.rests_s("slow", among=ALL, at=1.2) == 0.5 - (1.2 - 1.0)
    assert take(ahead, "slow", at=1.2) is None
    assert take(ahead, "slow", at=1.5) == (SLOW, [1])
    ahead.finished(SLOW, 1)
    put(ahead, SLOW, 2, WORTH_IT)
    assert ahead.rests_s("slow", among=ALL, at=1.6) == 0.0
    taken = take(ahead, "slow", at=1.6)
    assert taken is not None and len(taken[1]) == WORTH_IT


def test_after_a_stopped_flow_nothing_is_left_that_could_keep_a_partition_back() -> None:
    ahead = make_ahead(records_max=2)
    put(ahead, SLOW, 0, 5)
    assert take(ahead, "slow") is not None
    ahead.clear()
    assert ahead.room({SLOW}) == {SLOW}
    put(ahead, SLOW, 0, 1)
    assert take(ahead, "slow") == (SLOW, [0])


def test_what_was_fetched_before_the_flow_stopped_comes_too_late() -> None:
    ahead = make_ahead()
    before = ahead.epoch
    ahead.clear()
    ahead.put(QUICK, records(5, 1), epoch=before)
    assert take(ahead, "quick") is None
    put(ahead, QUICK, 0, 1)
    assert take(ahead, "quick") == (QUICK, [0])


def test_a_stopped_flow_drops_what_waits_because_it_is_read_again() -> None:
    consumer = DeliveringConsumer.__new__(DeliveringConsumer)
    consumer._ahead = make_ahead()
    consumer.can_resume_flow, consumer.suspend_flow = asyncio.Event(), asyncio.Event()
    consumer._thread = SimpleNamespace(wake=lambda: None)  # type: ignore[assignment]
    put(consumer._ahead, QUICK, 0, 3)
    consumer.stop_flow()
    assert consumer.waiting(QUICK) == 0
    assert consumer.epoch == 1


def test_agents_are_busy_with_a_batch_and_with_what_they_take_at_once() -> None:
    ahead = make_ahead()
    assert not ahead.is_busy()
    put(ahead, SLOW, 0, 1)
    # It may rest, so nobody is sure to be at work.
    assert not ahead.is_busy()
    take(ahead, "slow")
    assert ahead.is_busy()
    ahead.finished(SLOW, 0)
    assert not ahead.is_busy()
    put(ahead, QUICK, 0, 1)
    assert ahead.is_busy()
    take(ahead, "quick")
    assert ahead.is_busy()
    ahead.finished(QUICK, 0)
    assert not ahead.is_busy()


def test_a_fetch_that_rests_goes_on_once_nobody_is_at_work() -> None:
    ended: list[bool] = []
    consumer = DeliveringConsumer.__new__(DeliveringConsumer)
    consumer._ahead = make_ahead()
    consumer.can_resume_flow, consumer.suspend_flow = asyncio.Event(), asyncio.Event()
    consumer.flow_active = True
    consumer._get_active_partitions = lambda: set(ALL)  # type: ignore[method-assign]
    consumer._thread = SimpleNamespace(end_rest=lambda: ended.append(True))  # type: ignore[assignment]
    put(consumer._ahead, QUICK, 0, 1)
    take(consumer._ahead, "quick")
    asyncio.run(consumer._hand_over("quick"))
    assert not ended
    consumer._ahead.finished(QUICK, 0)
    asyncio.run(consumer._hand_over("quick"))
    assert ended


@given(st.lists(st.one_of(st.integers(1, 7), st.just("take"), st.just("finish"))))
def test_every_record_is_taken_once_and_in_order(steps: list[Any]) -> None:
    ahead, fetched, taken, last = make_ahead(records_max=5), 0, [], -1
    for step in [*steps, *["finish", "take"] * 20]:
        if step == "take":
            _, batch = take(ahead, "quick") or (QUICK, [])
            assert len(batch) <= 5
            taken += batch
            last = batch[-1] if batch else last
        elif step == "finish":
            ahead.finished(QUICK, last)
        elif ahead.room({QUICK}):
            put(ahead, QUICK, fetched, step)
            fetched += step
        assert ahead.count(QUICK) == fetched - len(taken)
    assert taken == list(range(len(taken)))
    assert len(taken) == fetched


def test_a_thread_may_put_in_while_another_takes() -> None:
    ahead, count = make_ahead(records_max=7), 20_000
    taken: dict[TP, list[int]] = {QUICK: [], OTHER: []}

    def fetch() -> None:
        for offset in range(count):
            for tp in taken:
                put(ahead, tp, offset, 1)

    thread = threading.Thread(target=fetch)
    thread.start()
    while any(len(offsets) < count for offsets in taken.values()):
        found = take(ahead, "quick")
        if found is None:
            assert thread.is_alive() or sum(map(ahead.count, taken))
            continue
        tp, batch = found
        taken[tp] += batch
        ahead.finished(tp, batch[-1])
    thread.join()
    assert all(offsets == list(range(count)) for offsets in taken.values())


def test_a_topic_rests_until_the_first_of_its_partitions_may_go_on() -> None:
    ahead = make_ahead()
    later = TP("slow", 1)
    for tp, at in ((SLOW, 0.0), (later, 0.2)):
        put(ahead, tp, 0, 1)
        assert take(ahead, "slow", at=at, among=frozenset({tp})) is not None
        ahead.finished(tp, 0)
    put(ahead, later, 1, 1)
    assert ahead.rests_s("slow", among=frozenset({SLOW, later}), at=0.3) == 0.7 - 0.3
    put(ahead, SLOW, 1, 1)
    assert ahead.rests_s("slow", among=frozenset({SLOW, later}), at=0.3) == 0.5 - 0.3
