"""When an outcome counts for a decision, and how its cost divides the reservation.

The worker and the ledger both decide by these functions, from records alone, so that they always
agree. ``clock_ms`` of a record is the largest timestamp in its partition of the outcomes topic up
to and including that record: unlike the record's own timestamp it never goes back, so whether a
reservation had expired when an outcome came is a function of the log, whoever reads it and when.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

PARK_MS = 60_000
"""How much earlier than its decision an outcome may be; until then it waits."""


def is_accepted(*, decided_ms: int, outcome_ms: int) -> bool:
    """Return whether an outcome with this record timestamp may count for the decision.

    Examples
    --------
    >>> is_accepted(decided_ms=100_000, outcome_ms=40_000)
    True
    >>> is_accepted(decided_ms=100_001, outcome_ms=40_000)
    False
    """
    return decided_ms <= outcome_ms + PARK_MS


def is_expired(*, expires_ms: int, clock_ms: int) -> bool:
    """Return whether a reservation has expired at this clock of its outcomes partition.

    An outcome is late if the reservation has expired at the clock of the outcome's record.

    Examples
    --------
    >>> is_expired(expires_ms=10, clock_ms=10), is_expired(expires_ms=10, clock_ms=11)
    (False, True)
    """
    return clock_ms > expires_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """What becomes of a reservation: ``settled + released`` is all of it."""

    settled_nanousd: int
    released_nanousd: int
    overrun_nanousd: int


def split_cost(*, reserved_nanousd: int, cost_nanousd: int) -> Split:
    """Divide a reservation by the true cost; what the cost exceeds it by is overrun.

    Raises
    ------
    ValueError
        If an amount is negative.

    Examples
    --------
    >>> split_cost(reserved_nanousd=10, cost_nanousd=4)
    Split(settled_nanousd=4, released_nanousd=6, overrun_nanousd=0)
    >>> split_cost(reserved_nanousd=10, cost_nanousd=13)
    Split(settled_nanousd=10, released_nanousd=0, overrun_nanousd=3)
    """
    if reserved_nanousd < 0 or cost_nanousd < 0:
        raise ValueError(f"negative amount: reserved {reserved_nanousd}, cost {cost_nanousd}")
    settled = min(reserved_nanousd, cost_nanousd)
    return Split(
        settled_nanousd=settled,
        released_nanousd=reserved_nanousd - settled,
        overrun_nanousd=cost_nanousd - settled,
    )


def fingerprint(content: bytes) -> bytes:
    """Return 16 bytes that tell a copy of the same content from a contradiction.

    Examples
    --------
    >>> fingerprint(b"a") == fingerprint(b"a") != fingerprint(b"b")
    True
    """
    return hashlib.blake2b(content, digest_size=16).digest()
