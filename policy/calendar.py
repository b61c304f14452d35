"""Windows of budgets: where the window that holds an instant begins and ends, in UTC.

A window is ``hour``, ``day``, ``week`` (from Monday), ``month``, ``total``, or a number of seconds
such as ``90s``, aligned to the epoch. Every instant lies in exactly one window ``[start, end)``.
"""

from __future__ import annotations

from datetime import date

TOTAL_END_MS = 4_102_444_800_000
"""Where ``total`` ends: the year 2100, past every instant that a record may carry."""

_SECOND_MS = 1_000
_HOUR_MS = 3_600 * _SECOND_MS
_DAY_MS = 24 * _HOUR_MS
_EPOCH_ORDINAL = date(1970, 1, 1).toordinal()
_MONDAY_MS = 4 * _DAY_MS
"""1970-01-05, the first Monday after the epoch."""


def window_start_ms(window: str, at_ms: int) -> int:
    """Return the first millisecond of the window that holds ``at_ms``.

    Parameters
    ----------
    window : str
        ``hour``, ``day``, ``week``, ``month``, ``total`` or ``<n>s``.
    at_ms : int
        Milliseconds since the epoch, not negative.

    Raises
    ------
    ValueError
        If the window is none of these, or the instant is negative.

    Examples
    --------
    >>> day = 86_400_000
    >>> window_start_ms("day", 20_000 * day + 5), window_start_ms("90s", 100_000)
    (1728000000000, 90000)
    >>> window_start_ms("week", 11 * day), window_start_ms("month", 40 * day)
    (950400000, 2678400000)
    >>> window_start_ms("total", 40 * day)
    0
    """
    return _bounds(window, at_ms)[0]


def window_end_ms(window: str, at_ms: int) -> int:
    """Return the first millisecond after the window that holds ``at_ms``.

    Parameters and errors are those of :func:`window_start_ms`.

    Examples
    --------
    >>> window_end_ms("hour", 0), window_end_ms("month", 40 * 86_400_000)
    (3600000, 5097600000)
    >>> window_end_ms("total", 0) == TOTAL_END_MS
    True
    """
    return _bounds(window, at_ms)[1]


def _bounds(window: str, at_ms: int) -> tuple[int, int]:
    if at_ms < 0:
        raise ValueError(f"an instant must not be negative, got {at_ms}")
    if window == "total":
        return 0, TOTAL_END_MS
    if window == "month":
        return _month(at_ms)
    origin_ms, length_ms = _grid(window)
    # The days before the first Monday belong to the week of 1969-12-29, whose start is negative.
    start_ms = at_ms - (at_ms - origin_ms) % length_ms
    return start_ms, start_ms + length_ms


def _grid(window: str) -> tuple[int, int]:
    if window == "hour":
        return 0, _HOUR_MS
    if window == "day":
        return 0, _DAY_MS
    if window == "week":
        return _MONDAY_MS, 7 * _DAY_MS
    seconds = window.removesuffix("s")
    if seconds == window or not (seconds.isascii() and seconds.isdigit()) or int(seconds) == 0:
        raise ValueError(f"unknown window {window!r}")
    return 0, int(seconds) * _SECOND_MS


def _month(at_ms: int) -> tuple[int, int]:
    first = date.fromordinal(_EPOCH_ORDINAL + at_ms // _DAY_MS).replace(day=1)
    after = date(first.year + first.month // 12, first.month % 12 + 1, 1)
    start, end = ((d.toordinal() - _EPOCH_ORDINAL) * _DAY_MS for d in (first, after))
    return start, end
