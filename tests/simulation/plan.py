"""Which faults a seed has."""

from __future__ import annotations

import random
from dataclasses import dataclass

from tests.simulation.process import Rates


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The faults of one seed: rates at each step, and seconds between events; 0 is never."""

    rates: Rates
    workers: int
    partitions: int
    kill_s: float
    stop_s: float
    rebalance_s: float
    abrupt: float
    clock_s: float
    clock_back: bool
    lose_tables: bool


def draw_plan(chance: random.Random) -> Plan:
    """Draw which faults there are; some seeds have few of them, so that none hides another."""

    def every(*seconds: float) -> float:
        return chance.choice([0.0, *seconds])

    return Plan(
        rates=Rates(
            slow=chance.choice([0.0, 0.002, 0.02, 0.1]),
            slow_s=chance.choice([1.0, 10.0, 30.0]),
            lost_ack=chance.choice([0.0, 0.0, 0.01]),
            lost_batch=chance.choice([0.0, 0.0, 0.01]),
            database=chance.choice([0.0, 0.05, 0.2]),
        ),
        workers=chance.choice([1, 2, 3]),
        partitions=chance.choice([1, 1, 2]),
        kill_s=every(3.0, 10.0),
        stop_s=every(4.0, 12.0),
        rebalance_s=every(3.0, 10.0),
        abrupt=chance.choice([0.0, 0.5, 1.0]),
        clock_s=every(5.0),
        clock_back=chance.random() < 0.5,
        lose_tables=chance.random() < 0.1,
    )
