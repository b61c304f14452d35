"""What a benchmark says: medians and spreads of rounds, ratios within a round, a table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any


def spread(values: Sequence[float], digits: int = 1) -> dict[str, float]:
    """Return median, smallest and largest.

    Examples
    --------
    >>> spread([3.0, 1.0, 2.04])
    {'median': 2.0, 'min': 1.0, 'max': 3.0}
    """
    return {
        "median": round(statistics.median(values), digits),
        "min": round(min(values), digits),
        "max": round(max(values), digits),
    }


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Return the median of the ratios of each round: what disturbs one round disturbs both.

    Examples
    --------
    >>> ratio([2.0, 30.0, 8.0], [1.0, 10.0, 2.0])
    3.0
    """
    pairs = zip(numerators, denominators, strict=True)
    return round(statistics.median(mine / other for mine, other in pairs), 3)


def table(rows: Sequence[Sequence[Any]], *, header: Sequence[str]) -> str:
    """Return rows as aligned text: the first column to the left, the others to the right.

    Examples
    --------
    >>> print(table([["raw", 1234.5]], header=["", "per s"]))
         per s
    raw  1,234
    """
    lines = [list(header), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def ratio_lines(ratios: Mapping[str, float]) -> str:
    """Return the ratios, one a line."""
    return "\n".join(f"ratio {name}: {value:,.3g}" for name, value in ratios.items())


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:,.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
