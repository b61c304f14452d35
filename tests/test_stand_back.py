"""Writers that fence each other off: one of them books in the end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from aiokafka import TopicPartition
from hypothesis import example, given
from hypothesis import strategies as st

from streams.ledger.cases import Cases
from streams.ledger.errors import LedgerFencedError
from streams.ledger.inbox import Inbox
from streams.ledger.member import Sink
from streams.ledger.stand_back import STAND_BACK_MAX_S, STAND_BACK_S, StandBack
from streams.ledger.unit import Batch, Unit


@dataclass
class Writer:
    """Claims, and ``takes_s`` later either books or learns that the other one has claimed."""

    takes_s: float
    at_s: float
    epoch: int = 0
    claimed: bool = False
    stand_back: StandBack = field(default_factory=StandBack)


@given(takes_s=st.floats(0.1, 30.0), phase_s=st.floats(0.0, 60.0))
@example(takes_s=2.5, phase_s=1.74)
def test_two_that_are_slow_to_book_get_there(takes_s: float, phase_s: float) -> None:
    """As two sinks of different groups: neither knows of the other but through the ledger."""
    writers = [Writer(takes_s, 0.0), Writer(takes_s, phase_s)]
    epoch, now_s = 0, 0.0
    # Their waits up to the longest that is needed, and what they take in between.
    limit_s = phase_s + 8 * (STAND_BACK_MAX_S + takes_s)
    while True:
        assert now_s <= limit_s, "neither has booked"
        writer = min(writers, key=lambda writer: writer.at_s)
        now_s = writer.at_s
        if not writer.claimed:
            assert writer.stand_back.may_claim(0, now_s)
            epoch = writer.epoch = epoch + 1
            writer.claimed, writer.at_s = True, now_s + writer.takes_s
        elif writer.epoch == epoch:
            break
        else:
            writer.claimed = False
            writer.stand_back.fenced(0, now_s)
            while not writer.stand_back.may_claim(0, writer.at_s):
                writer.at_s += STAND_BACK_S / 4


def test_whoever_has_booked_stands_back_for_a_short_time_again() -> None:
    stand_back = StandBack()
    for wait_s in (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 32.0):
        stand_back.fenced(3, 100.0)
        assert not stand_back.may_claim(3, 100.0 + wait_s - 0.01)
        assert stand_back.may_claim(3, 100.0 + wait_s)
        assert stand_back.may_claim(4, 100.0)
    stand_back.booked(3)
    stand_back.fenced(3, 200.0)
    assert not stand_back.may_claim(3, 200.9)
    assert stand_back.may_claim(3, 201.0)
    stand_back.fenced(3, 300.0)
    stand_back.clear()
    assert stand_back.may_claim(3, 300.0)


class Ledger:
    """Books what it is given, unless another writer has claimed the partition."""

    fenced = False

    def flush(self, unit: Unit, batch: Batch, **_: object) -> None:
        """Book it."""
        if self.fenced:
            raise LedgerFencedError(unit.partition, mine=1, found=2)
        unit.next_decision, unit.next_outcome = batch.ends(unit)
        unit.behind = False


async def at_once(call: Callable[[], Any]) -> Any:
    return call()


def inbox(*, records: int) -> Inbox:
    """Return what a sink holds of partition 0 that it has just claimed."""
    nothing: Any = None
    unit = Unit(
        partition=0, partitions=1, epoch=1, next_decision=0, next_outcome=0, cases=Cases(0),
        link=nothing,
    )  # fmt: skip
    held = Inbox(unit, ("d", "o"))
    read = [SimpleNamespace(offset=n, timestamp=1, key=None, value=b"{}") for n in range(records)]
    held.put(TopicPartition("d", 0), read)
    return held


async def test_a_sink_stands_back_until_it_has_booked_records() -> None:
    ledger: Any = Ledger()
    unused: Any = None
    sink = Sink(unused, ledger, decisions="d", outcomes="o", accept_gaps=False, in_thread=at_once)
    loop, waits = asyncio.get_running_loop(), []
    # A flush of nothing, as the first one after a claim, says nothing about the other writer.
    for fenced, records in ((True, 1), (False, 0), (True, 1), (False, 1), (True, 1), (True, 0)):
        sink._inboxes, ledger.fenced, now_s = {0: inbox(records=records)}, fenced, loop.time()
        await sink._flush(patient=False)
        assert (0 in sink._inboxes) is not fenced
        if fenced:
            waited = (w for w in (0, 1, 2, 4) if sink._stand_back.may_claim(0, now_s + w + 0.5))
            waits.append(next(waited))
    assert waits == [1, 2, 1, 2]
