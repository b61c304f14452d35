"""What is worked out for a whole batch, and the choice for one request of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from policy import eligibility
from policy.budgets import Path
from policy.money import NANO_PER_USD, Price, bound_nanousd
from policy.pacer import affordable, dual_price, pacing_of
from policy.state import Incoming, State
from policy.terms import Bools, Contexts, Floats, Ints

OUTPUT_SHARE = 0.95
"""Share of answers that a lowered output cap must hold, by what the arm's answers have been: the
last calls of a budget are cut short once in twenty, for three percent more of it that is used."""
_UNSEEN_MULTIPLE = 3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Round:
    """A batch as arrays: ``n`` requests, ``k`` arms.

    Parameters
    ----------
    eligible : ndarray of bool, shape (n, k)
    why_not : ndarray of int8, shape (n, k)
        Code into :data:`policy.eligibility.WHY_NOT`; ``score`` where eligible.
    uniform_why : bool
        Whether all rows of it are alike.
    reward, score, propensity : ndarray, shape (n, k)
        As the policy ranked them, at the dual price of each request.
    cost_nanousd, bound_nanousd : ndarray of int64, shape (n, k)
        Expected and largest possible cost; the expected never exceeds the bound.
    first, first_bound, any_eligible, explored : list of length n
        Column that the policy put first, what it would reserve, whether there is any, and whether
        chance put it there. Plain lists, because they are read one by one.
    paths : list of n tuples
        Budgets of each request.
    budget_price : dict
        For each budget: dual price, and dollars per request that the spend curve foretells there.
    ceilinged : frozenset of int
        Budgets that have a per-request ceiling.
    """

    eligible: Bools
    why_not: Ints
    uniform_why: bool
    reward: Floats
    score: Floats
    propensity: Floats
    cost_nanousd: Ints
    bound_nanousd: Ints
    first: list[int]
    first_bound: list[int]
    any_eligible: list[bool]
    explored: list[bool]
    paths: list[Path]
    budget_price: dict[int, tuple[float, float]]
    ceilinged: frozenset[int]


@dataclass(slots=True, kw_only=True)
class Found:
    """The arm (column) that fits and what it reserves, or why none does.

    ``why_not`` is empty where it is that of the round, the chosen arm excepted.
    """

    arm: int | None = None
    rejected: str = ""
    reserved_nanousd: int = 0
    max_output_tokens: int = 0
    why_not: Sequence[int] = ()


def make_round(state: State, batch: Sequence[Incoming], *, now_ms: int) -> Round:
    """Rank the arms for a batch at the dual prices of its budgets; changes only the curve."""
    contexts = _contexts(batch, state.dimensions + 1)
    paths = [state.budgets.path(r.budget) for r in batch]
    if batch:
        state.refresh_curve(contexts)
    eligible, why_not = eligibility.judge(state, batch, contexts, now_ms=now_ms)
    budget_price, ceilinged = _budget_prices(state, paths, now_ms=now_ms)
    price = np.array([max((budget_price[i][0] for i in path), default=0.0) for path in paths])
    ranking = state.policy.rank(contexts, dual_price=price, eligible=eligible)
    bound = _bounds(state, contexts)
    cost = np.rint(np.maximum(ranking.cost_usd, 0.0) * NANO_PER_USD)
    score = np.where(eligible, ranking.score, -np.inf)
    barred = eligible & (score == -np.inf)
    if barred.any():
        eligible, why_not = eligible & ~barred, np.where(barred, eligibility.POLICY, why_not)
    rows = np.arange(len(batch))
    first = score.argmax(axis=1) if len(state.catalog.arms) else np.zeros(len(batch), np.int64)
    return Round(
        eligible=eligible,
        why_not=why_not,
        uniform_why=bool(len(batch) and (why_not == why_not[0]).all()),
        reward=ranking.reward,
        score=score,
        propensity=ranking.propensity,
        cost_nanousd=np.minimum(cost, bound).astype(np.int64),
        bound_nanousd=bound,
        first=first.tolist(),
        first_bound=bound[rows, first].tolist() if len(state.catalog.arms) else [0] * len(batch),
        any_eligible=np.logical_or.reduce(eligible, axis=1).tolist(),
        explored=ranking.explored.tolist(),
        paths=paths,
        budget_price=budget_price,
        ceilinged=ceilinged,
    )


def reserve_best(
    state: State, rounds: Round, row: int, request: Incoming, *, patient: bool = True
) -> Found:
    """Return the best arm of a row that fits its ceilings and caps; the state is not changed.

    A ``patient`` request waits for its best arm where that fits once money in flight comes back;
    another takes a lower output cap, or the next arm, if that fits now.
    """
    path = rounds.paths[row]
    free = state.budgets.free(path)
    bound = rounds.first_bound[row]
    if bound <= free and rounds.ceilinged.isdisjoint(path):
        return Found(
            arm=rounds.first[row],
            reserved_nanousd=bound,
            max_output_tokens=request.max_output_tokens,
        )
    ultimate = state.budgets.ultimate(path)
    why_not = rounds.why_not[row].tolist()
    within = _within_ceilings(state, rounds, row, path)
    rejected = "over_ceiling"
    for column in np.argsort(-rounds.score[row], kind="stable").tolist():
        if not rounds.eligible[row, column]:
            break
        if not within[column]:
            why_not[column] = eligibility.CEILING
            continue
        bound = int(rounds.bound_nanousd[row, column])
        if bound <= free:
            return _found(request, column, bound, why_not=why_not)
        need = _least_bound(state, rounds, row, column, request)
        why_not[column] = eligibility.CAP
        if need > ultimate:
            if rejected != "budget_busy":
                rejected = "budget_exhausted"
            continue
        if need <= free and (bound > ultimate or not patient):
            # Not all that is free: the next request would have to wait for this one.
            return _lowered(state, request, column, need, why_not)
        rejected = "budget_busy"
        if patient:
            break
    return Found(rejected=rejected, why_not=why_not)


def _lowered(
    state: State, request: Incoming, column: int, amount: int, why_not: list[int]
) -> Found:
    price = state.prices[column]
    assert price is not None
    cap = _output_that_fits(price, request.input_tokens, amount)
    bound = bound_nanousd(price, input_tokens=request.input_tokens, output_tokens=cap)
    return _found(request, column, bound, cap=cap, why_not=why_not)


def _found(
    request: Incoming, column: int, reserved: int, *, why_not: list[int], cap: int | None = None
) -> Found:
    why_not[column] = 0
    return Found(
        arm=column,
        reserved_nanousd=reserved,
        max_output_tokens=request.max_output_tokens if cap is None else cap,
        why_not=why_not,
    )


def _contexts(batch: Sequence[Incoming], width: int) -> Contexts:
    features = np.empty((len(batch), width))
    for row, request in enumerate(batch):
        features[row] = request.features
    return Contexts(
        features=features,
        input_tokens=np.array([r.input_tokens for r in batch], np.int64),
        max_output_tokens=np.array([r.max_output_tokens for r in batch], np.int64),
        seeds=np.array([r.seed for r in batch], np.uint64),
    )


def _bounds(state: State, contexts: Contexts) -> Ints:
    dearest = [0 if p is None else max(p.input, p.cached or 0) for p in state.prices]
    output = [0 if p is None else p.output for p in state.prices]
    thousandths = np.multiply.outer(contexts.input_tokens, np.array(dearest, np.int64))
    thousandths += np.multiply.outer(contexts.max_output_tokens, np.array(output, np.int64))
    return -(-thousandths // 1_000)


def _budget_prices(
    state: State, paths: list[Path], *, now_ms: int
) -> tuple[dict[int, tuple[float, float]], frozenset[int]]:
    indices = sorted({index for path in paths for index in path})
    if not indices:
        return {}, frozenset()
    plan = state.budgets.plan(indices)
    prices = dual_price(
        pacing_of([state.budgets.paces[i] for i in indices]), plan, state.curve, now_ms=now_ms
    )
    planned = state.curve.cost_at(prices) if state.curve else np.zeros(len(indices))
    ceilinged = frozenset(
        i for i, ceiling in zip(indices, plan.per_request_usd, strict=True) if ceiling == ceiling
    )
    values = zip(prices.tolist(), planned.tolist(), strict=True)
    return dict(zip(indices, values, strict=True)), ceilinged


def _within_ceilings(state: State, rounds: Round, row: int, path: Path) -> Bools:
    """Return which arms the per-request ceilings of the path allow."""
    bound = [i for i in path if i in rounds.ceilinged]
    if not bound:
        eligible: Bools = rounds.eligible[row]
        return eligible
    cost = np.where(rounds.eligible[row], rounds.cost_nanousd[row] / NANO_PER_USD, np.inf)
    allowed: Bools = affordable(
        pacing_of([state.budgets.paces[i] for i in bound]),
        state.budgets.plan(bound),
        cost,
        None if state.curve is None else state.curve.arm_cost_usd,
    )
    return allowed


def _least_bound(state: State, rounds: Round, row: int, column: int, request: Incoming) -> int:
    """Return the bound at the learned upper quantile of the output, if that is lower.

    Until enough answers were seen a multiple of the expected cost stands for it: a budget smaller
    than the first bound would never see any.
    """
    bound = int(rounds.bound_nanousd[row, column])
    price = state.prices[column]
    assert price is not None
    lengths = state.lengths.get(state.catalog.arms[column].arm)
    tokens = lengths.quantile(OUTPUT_SHARE) if lengths else None
    if tokens is None:
        guess = _UNSEEN_MULTIPLE * int(rounds.cost_nanousd[row, column])
        tokens = max(_output_that_fits(price, request.input_tokens, guess), 1)
    if tokens >= request.max_output_tokens:
        return bound
    return bound_nanousd(price, input_tokens=request.input_tokens, output_tokens=tokens)


def _output_that_fits(price: Price, input_tokens: int, amount: int) -> int:
    """Return the largest output cap whose bound is at most ``amount``; the input fits."""
    input_bound = input_tokens * max(price.input, price.cached or 0)
    return (amount * 1_000 - input_bound) // price.output if price.output else 0
