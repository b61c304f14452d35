"""What accepted outcomes do: budgets, reservations, windows and the policy follow them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy.money import Price
from policy.outcomes import UNKNOWN, Arrivals
from policy.reservations import NONE
from policy.state import State
from policy.terms import Bools, Ints, Lessons

_PRICE = ("price_version", "price_input", "price_output", "price_cached")


def apply(
    state: State, arrivals: Arrivals, decision: Ints, rows: NDArray[Any], *, usage: Bools,
    reward: Bools, error_offset: bool = False,
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
    usage, reward : ndarray of bool, shape (n,)
        Which parts of each outcome count.
    error_offset : bool
        Whether to note that the outcome reported an error alone.
    """
    cost = np.where(usage, _cost(arrivals, rows), UNKNOWN)
    remembered = state.reservations
    if usage.any():
        _spend(state, rows[usage], cost[usage])
        remembered.change(
            decision[usage],
            usage_offset=arrivals.offsets[usage],
            usage_print=arrivals.usage_print[usage],
        )
    if reward.any():
        remembered.change(
            decision[reward],
            reward_offset=arrivals.offsets[reward],
            reward_print=arrivals.reward_print[reward],
        )
    if error_offset:
        remembered.change(decision, error_offset=arrivals.offsets)
    arms, segments = rows["arm"], rows["segment"]
    lessons: list[tuple[Ints, Lessons]] = []
    for number in sorted(set(arms.tolist())):
        mine = np.flatnonzero(arms == number)
        arm = remembered.arms.texts[number]
        for segment in sorted(set(segments[mine].tolist())):
            some = mine[segments[mine] == segment]
            state.windows.add(
                arm,
                remembered.segments.texts[segment],
                at_ms=arrivals.at_ms[some],
                reward=np.where(reward, arrivals.reward, np.nan)[some],
                cost_nanousd=cost[some],
                latency_ms=np.where(usage, arrivals.latency_ms, UNKNOWN)[some],
                error=arrivals.error[some],
            )
        taught = mine[(usage | reward)[mine]]
        if len(taught) and state.gate.passes(state.page_of_arm(arm)):
            lessons.append(
                (taught, _lessons(state, arm, arrivals, decision, rows, cost, reward, taught))
            )
    _teach(state, lessons)


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
    state: State, arm: str, arrivals: Arrivals, decision: Ints, rows: NDArray[Any], cost: Ints,
    reward: Bools, some: Ints,
) -> Lessons:  # fmt: skip
    remembered, offsets = state.reservations, decision[some]
    return Lessons(
        arm=arm,
        features=remembered.features(offsets),
        input_tokens=rows["input_tokens"][some].astype(np.int64),
        age=remembered.decided_since(offsets, before=state.gate.position.decisions),
        reward=np.where(reward[some], arrivals.reward[some], np.nan),
        cost_nanousd=cost[some],
        output_tokens=np.where(cost >= 0, arrivals.output_tokens, UNKNOWN)[some],
        latency_ms=np.where(cost >= 0, arrivals.latency_ms, UNKNOWN)[some],
        prices=_prices(rows[some], cost[some]),
        against=[arrivals.against[row] if reward[row] else None for row in some.tolist()],
    )


def _prices(rows: NDArray[Any], cost: Ints) -> list[Price | None]:
    """Return the prices that decisions pinned; None where no cost is known."""
    made: dict[tuple[int, ...], Price] = {}
    prices: list[Price | None] = []
    columns = [rows[name].tolist() for name in _PRICE]
    for known, *pinned in zip((cost >= 0).tolist(), *columns, strict=True):
        key = tuple(pinned)
        price = made.get(key) if known else None
        if known and price is None:
            version, input_price, output_price, cached = key
            price = made[key] = Price(
                version=version,
                input=input_price,
                output=output_price,
                cached=None if cached == NONE else cached,
            )
        prices.append(price)
    return prices


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


def _spend(state: State, rows: NDArray[Any], cost: Ints) -> None:
    # Expired before the outcome: then all of the reservation is spent already.
    expired = rows["expired_by"] != NONE
    paths = rows["budgets"].astype(np.int64)
    state.budgets.settle(
        state.budgets.paths.pairs(paths),
        decided_ms=rows["decided_ms"],
        held=np.where(expired, 0, rows["reserved"]),
        spent=cost - np.where(expired, rows["reserved"], 0),
        delta_nanousd=cost - np.where(expired, rows["reserved"], rows["expected"]),
        expected_nanousd=np.where(expired, 0, rows["expected"]),
    )
    state.free(paths)


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
