"""How a batch of decisions takes effect: live, or folded from the log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy.paths import Pairs
from policy.requests import Requests
from policy.reservation_rows import NONE
from policy.state import State
from policy.structured import rows_at
from policy.terms import Bools, Floats, Ints


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Taken:
    """The ``n`` decisions of one batch that take effect, in columns.

    Parameters
    ----------
    offsets : ndarray of int64, shape (n,)
        Where the decisions lie, ascending.
    requests : Requests
    column : ndarray of int64, shape (n,)
        Index into ``arms`` and ``blank``; -1 for a rejection.
    blank : structured ndarray, shape (k + 1,)
        The rows of :func:`policy.reservation_rows.blank_rows`.
    explored : ndarray of bool, shape (n,)
    reserved_nanousd, expected_nanousd : ndarray of int64, shape (n,)
    expires_ms : ndarray of int64, shape (n,), or int for all
    pairs : Pairs
        Of the paths on which the decisions hold money.
    paths : ndarray of int64, shape (n,)
    dual_price, planned_usd : ndarray
        Of ``pairs.budgets``.
    now_ms : int
        When they were decided.
    """

    offsets: Ints
    requests: Requests
    column: Ints
    arms: Sequence[str]
    blank: NDArray[Any]
    explored: Bools
    reserved_nanousd: Ints
    expected_nanousd: Ints
    expires_ms: Ints | int
    pairs: Pairs
    paths: Ints
    dual_price: Floats
    planned_usd: Floats
    now_ms: int


def take(state: State, taken: Taken) -> None:
    """Let decisions take effect; what they hold on the budgets is held already.

    The gate stands at the first of them, and at the end behind the last.
    """
    requests = taken.requests
    _remember(state, taken)
    _tell_policy(state, taken)
    state.budgets.charge(
        taken.pairs,
        expected_nanousd=taken.expected_nanousd,
        dual_price=taken.dual_price,
        planned_usd=taken.planned_usd,
        now_ms=taken.now_ms,
    )
    state.remember_contexts(requests.features, requests.input_tokens, requests.max_output_tokens)
    state.gate.advance("decisions", taken.offsets.item(-1) + 1)


def _remember(state: State, taken: Taken) -> None:
    remembered, requests = state.reservations, taken.requests
    # The last entry is that of a rejection, whose column is -1. Names are numbered as they come.
    numbers = [NONE] * (len(taken.arms) + 1)
    for column in dict.fromkeys(taken.column.tolist()):
        if column >= 0:
            numbers[column] = remembered.arms.number(taken.arms[column])
    rows = rows_at(taken.blank, taken.column)
    rows["arm"] = np.array(numbers)[taken.column]
    rows["decided_ms"] = taken.now_ms
    rows["explored"] = taken.explored
    rows["segment"] = _segments(state, requests.segments)
    rows["budgets"] = taken.paths
    rows["input_tokens"] = requests.input_tokens
    rows["id"] = np.frombuffer(b"".join(requests.ids), "V16")
    rows["request_print"] = requests.request_prints
    rows["reserved"] = taken.reserved_nanousd
    rows["expected"] = taken.expected_nanousd
    rows["expires_ms"] = taken.expires_ms
    remembered.add(taken.offsets, rows, requests.ids, requests.features)


def _segments(state: State, names: Sequence[str]) -> int | list[int]:
    """Return the number of each name; one for all if there is but one."""
    numbers = {name: state.reservations.segments.number(name) for name in dict.fromkeys(names)}
    if len(numbers) == 1:
        return next(iter(numbers.values()))
    return [numbers[name] for name in names]


def _tell_policy(state: State, taken: Taken) -> None:
    if state.batch_policy is None:
        for row, column in enumerate(taken.column.tolist()):
            if column >= 0 and state.gate.passes(state.page_of_arm(taken.arms[column])):
                features = taken.requests.features[row].astype(np.float64)
                explored = taken.explored.item(row)
                state.policy.decided(taken.arms[column], features, explored=explored)
        return
    for column in sorted(set(taken.column.tolist()) - {-1}):
        arm = taken.arms[column]
        if state.gate.passes(state.page_of_arm(arm)):
            mine = taken.column == column
            features = taken.requests.features[mine].astype(np.float64)
            state.batch_policy.decided_all(arm, features, explored=taken.explored[mine])
