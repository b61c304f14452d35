"""The pacer's state of one budget, and how requests and outcomes change it."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pacing = NDArray[Any]
"""An array of PACER_DTYPE, one entry for each budget."""

MEMORY_MS = 3_600_000.0
"""How long the request rate is remembered before a window's length is known."""
FAST = 10.0
"""The fast request rate forgets so many times faster."""
MEAN, MEAN_FAST = 1 / 400, 1 / 20
"""Weight of a request in the slow and fast means."""
_NOISE_KEEP = 0.99


@dataclass(slots=True)
class Pace:
    """State of one budget as plain numbers, which are changed at each request.

    128 bytes when packed, all zero for a new budget; :func:`pacing_of` makes the array of several.
    """

    total: int = 0
    """Requests ever."""
    first_ms: int = 0
    """First request ever; 0 before it."""
    seen_ms: int = 0
    """Latest request."""
    memory_ms: float = 0.0
    """Of the slow request rate."""
    requests: float = 0.0
    """In this window."""
    spent_usd: float = 0.0
    """In this window: expected until settled, then true."""
    open_calls: float = 0.0
    open_usd2: float = 0.0
    """Sum of squared expected dollars in flight."""
    noise_usd2: float = 0.0
    """Decayed sum of squared errors of expected dollars."""
    noise_scale_usd2: float = 0.0
    """Decayed sum of squared expected dollars of the same calls."""
    count_slow: float = 0.0
    """Decayed number of requests."""
    count_fast: float = 0.0
    dual_price: float = 0.0
    """Mean of those used lately."""
    mean_usd: float = 0.0
    """Of the last requests' dollars: expected until settled, then true."""
    mean_fast_usd: float = 0.0
    planned_usd: float = 0.0
    """Mean of what the curve foretold for the same requests."""

    def pack(self) -> bytes:
        """Return the fields as 128 bytes."""
        return _PACKED.pack(*_values(self))

    @classmethod
    def unpack(cls, data: bytes) -> Pace:
        """Return what :meth:`pack` has packed."""
        return cls(*_PACKED.unpack(data))


_PACKED = struct.Struct("<3q13d")
_values = attrgetter(*(field.name for field in fields(Pace)))
PACER_DTYPE = np.dtype(
    [(field.name, "<i8" if field.type == "int" else "<f8") for field in fields(Pace)]
)
"""The fields of :class:`Pace`, for arrays of budgets."""


def pacing_of(paces: Sequence[Pace]) -> Pacing:
    """Return the array of these budgets, shape (m,)."""
    return np.array([_values(pace) for pace in paces], PACER_DTYPE)


def charge(
    pace: Pace,
    *,
    expected_usd: float,
    now_ms: int,
    dual_price: float = 0.0,
    planned_usd: float = 0.0,
) -> None:
    """Note a decided request, in place: it was seen, and its expected dollars are spent.

    ``expected_usd`` is the expectation, not the bound; 0 for a rejected request. ``dual_price``
    is the price that the request was decided at, ``planned_usd`` what the curve foretold for it
    there (``SpendCurve.cost_at``; 0 for a rejected one): from their ratio the pacer learns how
    this budget's requests differ from those of the curve.
    """
    if pace.first_ms == 0:
        pace.first_ms = pace.seen_ms = max(now_ms, 1)
    since = now_ms - pace.seen_ms
    # The requests of a batch share their time: most often nothing has decayed.
    if since > 0:
        memory = pace.memory_ms or MEMORY_MS
        pace.count_slow *= math.exp(-since / memory)
        pace.count_fast *= math.exp(-since * FAST / memory)
        pace.seen_ms = now_ms
    pace.count_slow += 1.0
    pace.count_fast += 1.0
    pace.total += 1
    pace.requests += 1.0
    pace.spent_usd += expected_usd
    pace.dual_price += MEAN_FAST * (dual_price - pace.dual_price)
    pace.mean_fast_usd += MEAN_FAST * (expected_usd - pace.mean_fast_usd)
    pace.mean_usd += MEAN * (expected_usd - pace.mean_usd)
    pace.planned_usd += MEAN * (planned_usd - pace.planned_usd)
    if expected_usd > 0.0:
        pace.open_calls += 1.0
        pace.open_usd2 += expected_usd * expected_usd


def correct(pace: Pace, *, delta_usd: float, expected_usd: float, now_ms: int) -> None:
    """Note a settled call, in place: ``delta_usd`` is the true cost less what was charged.

    Parameters
    ----------
    expected_usd : float
        What :func:`charge` was given for the call; 0 for a second correction of one call, such
        as feedback after its expiry. At expiry the delta is the bound less the expectation.
    now_ms : int
        Time of the outcome.

    Notes
    -----
    Call it only while the window of the decision is still the current one: :func:`roll` has
    dropped the open calls of the former window.
    """
    pace.spent_usd += delta_usd
    # The means are of true dollars in the end: calls are chosen where their cost looks low, so
    # that expectations of chosen calls are too low on average.
    pace.mean_usd += MEAN * delta_usd
    pace.mean_fast_usd += MEAN_FAST * delta_usd
    if expected_usd <= 0.0:
        return
    scale = expected_usd * expected_usd
    pace.noise_usd2 = _NOISE_KEEP * pace.noise_usd2 + delta_usd * delta_usd
    pace.noise_scale_usd2 = _NOISE_KEEP * pace.noise_scale_usd2 + scale
    pace.open_calls = max(pace.open_calls - 1.0, 0.0)
    left = max(pace.open_usd2 - scale, 0.0)
    pace.open_usd2 = left if pace.open_calls > 0 else 0.0


def roll(pace: Pace, *, window_start_ms: int, window_end_ms: int) -> None:
    """Begin a window, in place: spend and requests restart, what was learned stays.

    Also to be called once for a new budget, since the window's length sets how long the request
    rate is remembered: a twenty-fourth of it.
    """
    length = float(window_end_ms - window_start_ms)
    pace.memory_ms = min(max(length / 24.0, 1_000.0), 24.0 * MEMORY_MS)
    pace.requests = pace.spent_usd = pace.open_calls = pace.open_usd2 = 0.0
