"""The pacer's state of budgets, and how requests and outcomes change it.

Decisions change it a batch at a time, as they lie in the log. Outcomes may be read in other
batches when the log is folded; what they change is therefore only added to, in their order, until
the budget's next batch of decisions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy.native import Index, Pointer, function, given, pointers
from policy.terms import Floats, Ints

Pacing = NDArray[Any]
"""An array of PACER_DTYPE (or with more fields before them), one entry for each budget."""

# These are in policy/native/pace.c, too.
MEMORY_MS = 3_600_000.0
"""How long the request rate is remembered before a window's length is known."""
FAST = 10.0
"""The fast request rate forgets so many times faster."""
MEAN = 1 / 400
"""Weight of a request in the slow means; in the fast ones it is 1 / 20."""
_NOISE_KEEP = 0.99
_FEW = 8
TOTAL_MAX = 2**62
"""The most nano-dollars of one window that are counted, over four billion dollars."""

PACER_DTYPE = np.dtype(
    [
        ("total", "<i8"),  # requests ever
        ("first_ms", "<i8"),  # first request ever; 0 before it
        ("seen_ms", "<i8"),  # latest request
        ("requests", "<i8"),  # in this window
        ("spent_nanousd", "<i8"),  # in this window: expected until settled, then true
        ("open_calls", "<i8"),
        ("open_usd2", "<f8"),  # sum of squared expected dollars in flight
        ("memory_ms", "<f8"),  # of the slow request rate
        ("count_slow", "<f8"),  # decayed number of requests
        ("count_fast", "<f8"),
        ("dual_price", "<f8"),  # mean of those used lately
        ("mean_usd", "<f8"),  # of the last requests' dollars: expected until settled, then true
        ("mean_fast_usd", "<f8"),
        ("planned_usd", "<f8"),  # mean of what the curve foretold for the same requests
        ("noise_usd2", "<f8"),  # decayed sum of squared errors of expected dollars
        ("noise_scale_usd2", "<f8"),  # decayed sum of squared expected dollars of the same calls
        ("settled_calls", "<i8"),  # since the last batch of decisions, not in the noise yet
        ("settled_usd2", "<f8"),
        ("settled_scale_usd2", "<f8"),
    ]
)


_charge = function("pace_charge", Index, Pointer, Index, *[Pointer] * 4, Index, result=None)
_hold = function("pace_hold", Index, Pointer, Index, Index, *[Pointer] * 2, result=Index)
_correct = function("pace_correct", Index, Pointer, Index, Index, *[Pointer] * 3, result=Index)


def hold(pacing: Pacing, budget: Ints, cost_nanousd: Ints) -> None:
    """Note decided requests at once: they were seen, and their expected dollars are spent.

    Parameters
    ----------
    pacing : Pacing, changed
    budget : ndarray of int64, shape (p,)
        Index of a budget; one entry for each request and budget of its path.
    cost_nanousd : ndarray of int64, shape (p,)
        The expectation, not the bound; 0 for a rejected request.
    """
    _to_pairs(_hold, pacing, budget, cost_nanousd)


def charge(
    pacing: Pacing,
    *,
    requests: Ints,
    cost_nanousd: Ints,
    dual_price: Floats,
    planned_usd: Floats,
    now_ms: int,
) -> None:
    """Let the means and rates follow one batch of decisions, in place.

    Parameters
    ----------
    pacing : Pacing, shape (m,)
        Of the budgets of the batch.
    requests, cost_nanousd : ndarray of int64, shape (m,)
        How many decisions the batch has for each budget, at least one, and their expected cost.
    dual_price, planned_usd : ndarray, shape (m,)
        The price that they were decided at, and what the curve foretold for a request there
        (``SpendCurve.cost_at``): from the ratio to the cost the pacer learns how this budget's
        requests differ from those of the curve.
    now_ms : int
    """
    shape = (len(pacing),)
    _charge(
        len(pacing), *pointers(pacing), pacing.itemsize,
        *pointers(
            given(requests, np.int64, shape), given(cost_nanousd, np.int64, shape),
            given(dual_price, np.float64, shape), given(planned_usd, np.float64, shape),
        ),
        now_ms,
    )  # fmt: skip


def correct(pacing: Pacing, budget: Ints, *, delta_nanousd: Ints, expected_nanousd: Ints) -> None:
    """Note settled calls: ``delta_nanousd`` is the true cost less what was charged.

    Parameters
    ----------
    pacing : Pacing, changed
    budget : ndarray of int64, shape (p,)
    delta_nanousd : ndarray of int64, shape (p,)
        At expiry the bound less the expectation.
    expected_nanousd : ndarray of int64, shape (p,)
        What :func:`hold` was given for the call; 0 for a second correction of one call, such as
        feedback after its expiry.

    Notes
    -----
    Only while the window of the decision is still the current one: :func:`roll` has dropped the
    open calls of the former window.
    """
    add_amounts(pacing["spent_nanousd"], budget, delta_nanousd)
    _to_pairs(_correct, pacing, budget, delta_nanousd, expected_nanousd)


def _to_pairs(change: Callable[..., int], pacing: Pacing, budget: Ints, *amounts: Ints) -> None:
    """Let C change these budgets by these amounts, in order; ``IndexError`` if one is unknown."""
    shape = (len(budget),)
    arrays = [given(values, np.int64, shape) for values in (budget, *amounts)]
    known = change(len(budget), *pointers(pacing), pacing.itemsize, len(pacing), *pointers(*arrays))
    if not known:
        raise IndexError(f"of {len(pacing)} budgets one is asked for that is not among them")


def adder(budget: Ints) -> Callable[[NDArray[Any], Ints, NDArray[Any] | int], None]:
    """Return how to add to these entries of a column, in order.

    Where each comes once, as in a batch of a single request, the plain way does and is cheaper.
    """
    few = budget.tolist() if len(budget) <= _FEW else [0, 0]
    return _add_once if len(set(few)) == len(few) else np.add.at


def _add_once(column: NDArray[Any], budget: Ints, amounts: NDArray[Any] | int) -> None:
    column[budget] += amounts


def add_amounts(total: Ints, budget: Ints, amount: Ints) -> None:
    """Add amounts to the totals of budgets, in order; a total stays at ``TOTAL_MAX``.

    Only thousands of bills of a million dollars come there; the ledger has them all.
    """
    if len(budget) == 0:
        return
    largest = max(int(amount.max()), -int(amount.min()))
    most = int(total[budget].max()) + largest * len(amount)
    if most < 0.99 * TOTAL_MAX:
        adder(budget)(total, budget, amount)
        return
    for index, one in zip(budget.tolist(), amount.tolist(), strict=True):
        total[index] = min(int(total[index]) + one, TOTAL_MAX)


def noise_sums(pacing: Pacing) -> tuple[Floats, Floats]:
    """Return the decayed sums of squared errors and of squared expectations."""
    kept = _NOISE_KEEP ** pacing["settled_calls"]
    return (
        kept * pacing["noise_usd2"] + pacing["settled_usd2"],
        kept * pacing["noise_scale_usd2"] + pacing["settled_scale_usd2"],
    )


def open_usd2(pacing: Pacing) -> Floats:
    """Return the sum of squared expected dollars in flight."""
    left: Floats = np.where(pacing["open_calls"] > 0, np.maximum(pacing["open_usd2"], 0.0), 0.0)
    return left


def roll(pacing: Pacing, index: int, *, window_start_ms: int, window_end_ms: int) -> None:
    """Begin a window of one budget: spend and requests restart, what was learned stays.

    Also to be called once for a new budget, since the window's length sets how long the request
    rate is remembered: a twenty-fourth of it.
    """
    length = float(window_end_ms - window_start_ms)
    pacing["memory_ms"][index] = min(max(length / 24.0, 1_000.0), 24.0 * MEMORY_MS)
    for name in ("requests", "spent_nanousd", "open_calls", "open_usd2"):
        pacing[name][index] = 0
