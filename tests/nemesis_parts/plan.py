"""Which faults, when and how long: drawn from the seed before anything runs."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from tests.nemesis_parts.world import SESSION_S

GAP_S = (0.3, 2.1)
"""From one fault to the next."""
RATES = {
    "worker_kill": 16,
    "worker_sleep": 8,
    "worker_scale": 8,
    "worker_link_cut": 6,
    "worker_link_mute": 5,
    "worker_link_hold": 11,
    "worker_produce_reply_lost": 5,
    "worker_produce_lost": 3,
    "worker_link_slow": 4,
    "sink_kill": 8,
    "sink_sleep": 7,
    "sink_link_cut": 3,
    "broker_kill": 3,
    "postgres_crash": 7,
    "ledger_commit_reply_lost": 16,
    "ledger_commit_lost": 5,
    "ledger_link_mute": 4,
    "ledger_link_hold": 4,
    "ledger_link_slow": 2,
    "load_link_cut": 2,
}
"""How often each kind is drawn, in comparison."""
CALM = frozenset(kind for kind in RATES if kind.startswith(("sink", "ledger", "postgres", "load")))
"""Kinds that do not keep workers from deciding."""
BEYOND_S = (SESSION_S + 1.0, SESSION_S + 7.0)
"""Longer than a session and, mostly, than others need to take over."""
_LENGTHS = {
    "worker_sleep": BEYOND_S,
    "sink_sleep": BEYOND_S,
    "worker_link_hold": BEYOND_S,
    "ledger_link_hold": BEYOND_S,
    "worker_link_mute": (0.5, 5.0),
    "ledger_link_mute": (0.5, 4.0),
    "worker_link_slow": (2.0, 6.0),
    "ledger_link_slow": (2.0, 6.0),
    "broker_kill": (0.0, 1.5),
    "postgres_crash": (0.0, 2.0),
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: so long after the one before it, of a kind, on one of several, for a time.

    ``choice`` in [0, 1) picks the process or link, or how many workers there are to be.
    """

    gap_s: float
    kind: str
    choice: float
    length_s: float


def draw(seed: int, only: Collection[str] = ()) -> Iterator[Fault]:
    """Yield the faults of a seed, without end; of all kinds, or ``only`` of some.

    The first ones are one of each kind.
    """
    chance = random.Random(f"faults {seed}")
    kinds = [kind for kind in RATES if not only or kind in only]
    weights = [RATES[kind] for kind in kinds]
    first = chance.sample(kinds, len(kinds))
    while True:
        kind = first.pop() if first else chance.choices(kinds, weights)[0]
        low, high = _LENGTHS.get(kind, (0.0, 0.0))
        yield Fault(
            chance.uniform(*GAP_S), kind, chance.random(), round(chance.uniform(low, high), 3)
        )
