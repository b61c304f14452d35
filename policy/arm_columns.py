"""What the catalog says of its arms, in columns: made once for each catalog, read at each batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy.reservation_rows import blank_rows
from policy.terms import Arm, Bools, Ints
from policy.why_not import SCORE, UNDEPLOYED, UNPRICED, Codes

_UNLIMITED = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ArmColumns:
    """The arms of a catalog; all arrays of shape (k,).

    Parameters
    ----------
    why_not : ndarray of int8
        Why no request at all may use the arm; ``score`` where that is not so.
    routable : ndarray of bool
        Where it is not so.
    context_max : ndarray of int64, or None
        The most tokens of a call; None if no arm has a limit.
    price_input, price_output : ndarray of int64
        The most that a token may cost, read from a cache or not; 0 for an arm without a price.
    rows : structured ndarray, shape (k + 1,)
        What is remembered alike of all decisions for an arm; the last is that of a rejection.
    """

    why_not: Codes
    routable: Bools
    context_max: Ints | None
    price_input: Ints
    price_output: Ints
    rows: NDArray[Any]

    @classmethod
    def of(cls, arms: Sequence[Arm]) -> ArmColumns:
        """Return the columns of these arms, in their order."""
        why_not = np.full(len(arms), SCORE, np.int8)
        for column, arm in enumerate(arms):
            if not arm.deployed:
                why_not[column] = UNDEPLOYED
            elif arm.price is None:
                why_not[column] = UNPRICED
        limits = [arm.context_tokens_max for arm in arms]
        prices = [arm.price for arm in arms]
        dearest = [0 if p is None else max(p.input, p.cached or 0) for p in prices]
        return cls(
            why_not=why_not,
            routable=why_not == SCORE,
            context_max=None
            if limits.count(None) == len(limits)
            else np.array([_UNLIMITED if limit is None else limit for limit in limits], np.int64),
            price_input=np.array(dearest, np.int64),
            price_output=np.array([0 if p is None else p.output for p in prices], np.int64),
            rows=blank_rows(prices),
        )
