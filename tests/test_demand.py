"""Which partitions are fetched from."""

from __future__ import annotations

from faust.types import TP

from streams.faust_batches.demand import SMALL, Demand

QUICK, SLOW = TP("quick", 0), TP("slow", 0)


def demand(**more: int) -> Demand:
    return Demand(queued_max=2, linger_s={"slow": 0.5}, **more)


def wanted(found: Demand, *, at: float = 0.0) -> set[TP]:
    return set(found.of([QUICK, SLOW], at=at))


def test_nothing_is_fetched_ahead_of_a_small_batch() -> None:
    found = demand()
    assert found.delivered(QUICK, 4, size=5, at=0.0) == 0.0
    assert wanted(found) == {SLOW}
    found.finished(QUICK, 4)
    assert wanted(found) == {QUICK, SLOW}


def test_as_many_large_ones_as_may_be_queued_are() -> None:
    found = demand()
    found.delivered(QUICK, SMALL - 1, size=SMALL, at=0.0)
    assert wanted(found) == {QUICK, SLOW}
    found.delivered(QUICK, 2 * SMALL - 1, size=SMALL, at=0.0)
    assert wanted(found) == {SLOW}
    assert found.queued(QUICK) == 2
    found.finished(QUICK, SMALL - 1)
    assert wanted(found) == {QUICK, SLOW}


def test_the_largest_possible_batch_is_not_small() -> None:
    found = demand(size_max=10)
    assert found.delivered(SLOW, 9, size=10, at=0.0) == 0.0
    assert wanted(found) == {QUICK, SLOW}


def test_a_partition_rests_after_a_small_batch_where_the_topic_says_so() -> None:
    found = demand()
    assert found.delivered(SLOW, 0, size=1, at=1.0) == 0.5
    found.finished(SLOW, 0)
    assert wanted(found, at=1.4) == {QUICK}
    assert wanted(found, at=1.5) == {QUICK, SLOW}
    found.delivered(SLOW, 1, size=1, at=1.5)
    found.forget(SLOW)
    assert wanted(found, at=1.6) == {QUICK, SLOW}
