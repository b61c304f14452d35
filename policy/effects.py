"""What accepted outcomes do: budgets, reservations, windows and the policy follow them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy.money import Price
from policy.outcomes import UNKNOWN, Arrivals
from policy.paths import Pairs
from policy.reservation_rows import NONE
from policy.state import State
from policy.terms import Bools, Floats, Ints, Lessons

_PRICE = ("price_version", "price_input", "price_output", "price_cached")


def apply(
    state: State, arrivals: Arrivals, decision: Ints, rows: NDArray[Any], *, pairs: Pairs,
    usage: Bools, reward: Bools, error_offset: bool = False,
) -> None:  # fmt: skip
    """Let outcomes take effect, in order; the windows of their budgets are rolled.

    Parameters
    ----------
    state : State
        Changed.
    arrivals : Arrivals
    decision : ndarray of int64, shape (n,)
        Offsets of their decisions.
    rows : structured ndarray, shape (n,)
        What is remembered of those.
    pairs : Pairs
        Of the same rows; those of rows that settle nothing may be left out.
    usage, reward : ndarray of bool, shape (n,)
        Which parts of each outcome count.
    error_offset : bool
        Whether to note that the outcome reported an error alone.
    """
    cost = np.where(usage, _cost(arrivals, rows), UNKNOWN)
    told = _Told(
        rows=rows,
        at_ms=arrivals.at_ms,
        reward=np.where(reward, arrivals.reward, np.nan),
        cost_nanousd=cost,
        output_tokens=np.where(usage, arrivals.output_tokens, UNKNOWN),
        latency_ms=np.where(usage, arrivals.latency_ms, UNKNOWN),
        error=arrivals.error,
    )
    if np.count_nonzero(usage):
        _spend(state, rows, cost, pairs)
    _remember(state, arrivals, decision, usage=usage, reward=reward)
    if error_offset:
        state.reservations.change(decision, error_offset=arrivals.offsets)
    _count(state, told)
    _teach(state, _lessons(state, arrivals, decision, told, usage | reward))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Told:
    """What outcomes told of their decisions, shape (n,): nan or ``UNKNOWN`` where they did not."""

    rows: NDArray[Any]
    at_ms: Ints
    reward: Floats
    cost_nanousd: Ints
    output_tokens: Ints
    latency_ms: Ints
    error: Bools


def _remember(
    state: State, arrivals: Arrivals, decision: Ints, *, usage: Bools, reward: Bools
) -> None:
    parts = (
        (usage, {"usage_offset": arrivals.offsets, "usage_print": arrivals.usage_print}),
        (reward, {"reward_offset": arrivals.offsets, "reward_print": arrivals.reward_print}),
    )
    counts = [np.count_nonzero(present) for present, _ in parts]
    if min(counts) == len(decision):
        # Both parts of all of them, as most outcomes come.
        state.reservations.change(decision, **parts[0][1], **parts[1][1])
        return
    for count, (present, fields) in zip(counts, parts, strict=True):
        if count:
            some = {name: values[present] for name, values in fields.items()}
            state.reservations.change(decision[present], **some)


def _count(state: State, told: _Told) -> None:
    """Add to the window of each arm and segment."""
    remembered, rows = state.reservations, told.rows
    arms, segments = rows["arm"], rows["segment"]
    pairs = list(zip(arms.tolist(), segments.tolist(), strict=True))
    for number, segment in (windows := sorted(set(pairs))):
        some: Any = slice(None)
        if len(windows) > 1:
            some = ((arms == number) & (segments == segment)).nonzero()[0]
        state.windows.add(
            remembered.arms.texts[number],
            remembered.segments.texts[segment],
            at_ms=told.at_ms[some],
            reward=told.reward[some],
            cost_nanousd=told.cost_nanousd[some],
            latency_ms=told.latency_ms[some],
            error=told.error[some],
        )


def _teach(state: State, lessons: Sequence[tuple[Ints, Lessons]]) -> None:
    for _, lesson in lessons:
        output = lesson.output_tokens
        state.lengths_of(lesson.arm).add(output[output >= 0])
    if state.batch_policy is not None:
        for _, lesson in lessons:
            state.batch_policy.learn_all(lesson)
        return
    # What such a policy learns may depend on the order of outcomes of different arms.
    each = [pair for rows, lesson in lessons for pair in zip(rows.tolist(), lesson, strict=True)]
    for _, learning in sorted(each, key=lambda pair: pair[0]):
        state.policy.learn(learning)


def _lessons(
    state: State, arrivals: Arrivals, decision: Ints, told: _Told, taught: Bools
) -> list[tuple[Ints, Lessons]]:
    """Return what each arm is taught, and by which rows."""
    remembered, rows = state.reservations, told.rows
    arms = rows["arm"]
    mine: dict[int, Ints] = {}
    for number in sorted(set(arms.tolist())):
        some = ((arms == number) & taught).nonzero()[0]
        if len(some) and state.gate.passes(state.page_of_arm(remembered.arms.texts[number])):
            mine[number] = some
    if not mine:
        return []
    features = remembered.features(decision)
    age = remembered.decided_since(decision, before=state.gate.position.decisions)
    input_tokens, prices = rows["input_tokens"].astype(np.int64), _prices(told)
    against = arrivals.against
    if against.count(None) < len(against):
        known = (told.reward == told.reward).tolist()
        against = [arm if there else None for arm, there in zip(against, known, strict=True)]
    return [
        (
            some,
            Lessons(
                arm=remembered.arms.texts[number],
                features=features[some],
                input_tokens=input_tokens[some],
                age=age[some],
                reward=told.reward[some],
                cost_nanousd=told.cost_nanousd[some],
                output_tokens=told.output_tokens[some],
                latency_ms=told.latency_ms[some],
                prices=[prices[row] for row in some.tolist()],
                against=[against[row] for row in some.tolist()],
            ),
        )
        for number, some in mine.items()
    ]


def _prices(told: _Told) -> list[Price | None]:
    """Return the prices that decisions pinned; None where no cost is known."""
    columns = [told.rows[name].tolist() for name in _PRICE]
    keys = list(zip(*columns, strict=True))
    known = (told.cost_nanousd >= 0).tolist()
    made = {key: _pinned(*key) for key in set(compress(keys, known))}
    return [made[key] if there else None for key, there in zip(keys, known, strict=True)]


def _pinned(version: int, input_price: int, output_price: int, cached: int) -> Price:
    cached_price = None if cached == NONE else cached
    return Price(version=version, input=input_price, output=output_price, cached=cached_price)


def _cost(arrivals: Arrivals, rows: NDArray[Any]) -> Ints:
    """Return the true costs in nano-dollars: as billed, or of the usage at the pinned price."""
    cached_price = np.where(rows["price_cached"] == NONE, rows["price_input"], rows["price_cached"])
    input_tokens = np.maximum(arrivals.input_tokens, 0)
    thousandths = (
        (input_tokens - arrivals.cached_tokens) * rows["price_input"]
        + arrivals.cached_tokens * cached_price
        + np.maximum(arrivals.output_tokens, 0) * rows["price_output"]
    )
    billed = arrivals.cost_nanousd
    cost: Ints = np.where(billed != UNKNOWN, billed, -(-thousandths // 1_000))
    return cost


def _spend(state: State, rows: NDArray[Any], cost: Ints, pairs: Pairs) -> None:
    # Expired before the outcome: then all of the reservation is spent already.
    expired = rows["expired_by"] != NONE
    state.budgets.settle(
        pairs,
        decided_ms=rows["decided_ms"],
        held=np.where(expired, 0, rows["reserved"]),
        spent=cost - np.where(expired, rows["reserved"], 0),
        delta_nanousd=cost - np.where(expired, rows["reserved"], rows["expected"]),
        expected_nanousd=np.where(expired, 0, rows["expected"]),
    )
    state.free(rows["budgets"][cost != UNKNOWN])


def spend_expired(state: State, offsets: Sequence[int], now_ms: int) -> None:
    """Count whole reservations as spent, until feedback trues them up."""
    if not offsets:
        return
    rows = state.reservations.rows(np.array(offsets, np.int64))
    paths = rows["budgets"].astype(np.int64)
    pairs = state.budgets.paths.pairs(paths)
    state.budgets.roll(pairs.budgets, now_ms)
    state.budgets.settle(
        pairs,
        decided_ms=rows["decided_ms"],
        held=rows["reserved"],
        spent=rows["reserved"],
        delta_nanousd=rows["reserved"] - rows["expected"],
        expected_nanousd=rows["expected"],
    )
    state.free(paths)
