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


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkPlan:
    """The faults of the sinks: rates at each step, and seconds between events; 0 is never."""

    rates: Rates
    sinks: int
    astray: float
    """How often a consumer reads from elsewhere."""
    killed: float
    """How often a sink is killed at a statement."""
    asleep: float
    """How often it stops there, for up to a minute."""
    kill_s: float
    rebalance_s: float
    outage_s: float
    abrupt: float


def draw_sink_plan(chance: random.Random) -> SinkPlan:
    """Draw which faults there are."""
    return SinkPlan(
        rates=Rates(
            slow=chance.choice([0.0, 0.002, 0.02]),
            slow_s=chance.choice([1.0, 10.0]),
            lost_ack=chance.choice([0.0, 0.05]),
            lost_batch=chance.choice([0.0, 0.05]),
            database=chance.choice([0.0, 0.2, 0.5]),
        ),
        sinks=chance.choice([1, 2, 3]),
        astray=chance.choice([0.0, 0.05]),
        killed=chance.choice([0.0, 0.003, 0.01]),
        asleep=chance.choice([0.0, 0.005, 0.01]),
        kill_s=chance.choice([0.0, 5.0]),
        rebalance_s=chance.choice([0.0, 3.0, 8.0]),
        outage_s=chance.choice([0.0, 10.0]),
        abrupt=chance.choice([0.0, 0.5, 1.0]),
    )
