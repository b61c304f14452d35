"""Writers that fence each other off: one of them books in the end."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import example, given
from hypothesis import strategies as st

from streams.ledger.stand_back import STAND_BACK_MAX_S, STAND_BACK_S, StandBack


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
