"""How regret grows with the length of the stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from streams.replay.job import Job, Result, replay


def replay_lengths(
    jobs: Sequence[Job], on_step: Callable[[int], None] | None = None
) -> tuple[Result, dict[str, dict[str, Any]]]:
    """Replay streams of several lengths; return the longest's result, and the growth by policy.

    Parameters
    ----------
    jobs : sequence of Job
        By ascending length; their policies may be told it.
    on_step : callable, optional
        Told of each decision.
    """
    results = [replay(job, on_step) for job in jobs]
    lengths = [len(result.world.order) for result in results]
    growth = {
        name: growth_of(lengths, [result.policies[name]["regret_to_mix"] for result in results])
        for name in results[-1].policies
    }
    return results[-1], growth


def growth_of(lengths: Sequence[int], regrets: Sequence[float]) -> dict[str, Any]:
    """Return the regrets with the exponent that fits them best, None where one is not positive.

    Examples
    --------
    >>> growth_of([1_000, 8_000], [10.0, 40.0])["exponent"]
    0.667
    """
    exponent = None
    if len(lengths) > 1 and min(regrets) > 0.0:
        exponent = round(float(np.polyfit(np.log(lengths), np.log(regrets), 1)[0]), 3)
    return {"requests": list(lengths), "regret_to_mix": list(regrets), "exponent": exponent}
