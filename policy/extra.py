"""What an option of the score is given, and may keep of each arm (:mod:`policy.extras`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from policy.terms import Bools, Floats, Learning

Kept = list[float] | list[str] | dict[str, tuple[float, float]]
"""What is kept of one arm, or of all of them together."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scored:
    """A batch as the policy has scored it; arrays of shape (n, k), columns in the order of arms.

    ``reward`` is the estimate with its bonus; the score is that less priced dollars.
    """

    arms: tuple[str, ...]
    score: Floats
    reward: Floats
    cost_usd: Floats
    open_arms: Bools


class Extra:
    """An option that does nothing.

    What is kept of an arm changes only by what happens to that arm, so that its page alone
    restores it; unless the option spans the arms (:class:`policy.terms.SpansArms`) and what it
    keeps is the same for each of them.
    """

    name = ""
    spans_arms = False

    def shift(self, arms: Sequence[str]) -> Floats | None:
        """Return what is added to the estimated reward of each arm, shape (k,)."""
        return None

    def adjust(self, scored: Scored) -> Floats:
        """Return the scores with this option in them, shape (n, k)."""
        return scored.score

    def decided(self, arm: str) -> None:
        """Note a decision for an arm."""

    def learned(self, learning: Learning) -> None:
        """Note an outcome."""

    def kept(self, arm: str) -> Kept | None:
        """Return what is kept of an arm; None for nothing."""
        return None

    def restore(self, arm: str, kept: Kept) -> None:
        """Put back what :meth:`kept` returned; ``ValueError`` if it cannot be that."""


def numbers(kept: Kept, count: int) -> list[float]:
    """Return what was kept as a list of so many numbers, or raise ``ValueError``."""
    if not isinstance(kept, list) or len(kept) != count:
        raise ValueError(f"not {count} numbers: {kept!r}")
    if any(not isinstance(value, float | int) or not np.isfinite(value) for value in kept):
        raise ValueError(f"not finite numbers: {kept!r}")
    return [float(value) for value in kept]
