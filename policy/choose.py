"""What is worked out for a whole batch, and the choice for one request of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from policy.eligibility import judge
from policy.money import NANO_PER_USD, Price, bound_nanousd
from policy.pacer import affordable, dual_price, standing_of
from policy.paths import Pairs
from policy.requests import Requests
from policy.state import State
from policy.terms import Bools, Contexts, Floats, Ints, Ranking
from policy.why_not import CAP, CEILING, POLICY, Codes

OUTPUT_SHARE = 0.95
"""Share of answers that a lowered output cap must hold, by what the arm's answers have been: the
last calls of a budget are cut short once in twenty, for three percent more of it that is used."""
_UNSEEN_MULTIPLE = 3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Round:
    """A batch as arrays: ``n`` requests, ``k`` arms, ``m`` budgets.

    Parameters
    ----------
    eligible : ndarray of bool, shape (n, k)
    why_not : ndarray of int8, shape (n, k)
        Code into :data:`policy.why_not.WHY_NOT`; ``score`` where eligible.
    uniform_why : bool
        Whether all rows of it are alike.
    reward, score, propensity : ndarray, shape (n, k)
        As the policy ranked them, at the dual price of each request.
    cost_nanousd, bound_nanousd : ndarray of int64, shape (n, k)
        Expected and largest possible cost; the expected never exceeds the bound.
    first, first_bound, first_cost : ndarray of int64, shape (n,)
        Column that the policy put first, what it would reserve and is expected to cost.
    explored : ndarray of bool, shape (n,)
        Whether chance put the first arm there.
    quick : ndarray of bool, shape (n,)
        Whether nothing but a cap or a ceiling can keep the request from its first arm.
    paths : ndarray of int64, shape (n,)
        Path of each request.
    pairs : Pairs
        Of the same paths.
    dual_price, planned_usd, ceiling_usd : ndarray, shape (m,)
        Of ``pairs.budgets``: the price, the dollars per request that the spend curve foretells
        there, and the per-request ceiling, nan where there is none.
    has_ceilings : bool
        Whether any of them has one.
    """

    eligible: Bools
    why_not: Codes
    uniform_why: bool
    reward: Floats
    score: Floats
    propensity: Floats
    cost_nanousd: Ints
    bound_nanousd: Ints
    first: Ints
    first_bound: Ints
    first_cost: Ints
    explored: Bools
    quick: Bools
    paths: Ints
    pairs: Pairs
    dual_price: Floats
    planned_usd: Floats
    ceiling_usd: Floats
    has_ceilings: bool


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


def make_round(state: State, batch: Requests, paths: Ints, pairs: Pairs, *, now_ms: int) -> Round:
    """Rank the arms for a batch at the dual prices of its budgets; changes only the curve."""
    contexts = Contexts(
        features=batch.features.astype(np.float64),
        input_tokens=batch.input_tokens,
        max_output_tokens=batch.max_output_tokens,
        seeds=batch.seeds,
    )
    if len(batch):
        state.refresh_curve(contexts)
    eligible, why_not = judge(state, batch, now_ms=now_ms)
    plan = state.budgets.plan(pairs.budgets)
    prices = dual_price(state.budgets.rows(pairs.budgets), plan, state.curve, now_ms=now_ms)
    # Several budgets may bind one request: the largest price lets each follow its plan.
    price = np.zeros(len(batch))
    np.maximum.at(price, pairs.row, prices[pairs.place])
    ranking = _ranked(state, contexts, price, eligible)
    bound = _bounds(state, contexts)
    expected = np.rint(np.maximum(ranking.cost_usd, 0.0) * NANO_PER_USD)
    cost = np.minimum(expected, bound).astype(np.int64)
    score = np.where(eligible, ranking.score, -np.inf)
    barred = eligible & (score == -np.inf)
    if np.count_nonzero(barred):
        eligible = eligible & ~barred
        why_not[barred] = POLICY
    rows, first = np.arange(len(batch)), np.zeros(len(batch), np.int64)
    first_bound = first_cost = first
    if len(state.catalog.arms):
        first = score.argmax(axis=1)
        first_bound, first_cost = bound[rows, first], cost[rows, first]
    quick = state.budgets.paths.depths(paths) > 0
    if not eligible.size or np.count_nonzero(eligible) < eligible.size:
        quick &= np.logical_or.reduce(eligible, axis=1)
    for row, constraints in batch.constraints.items():
        quick[row] &= constraints.deadline_ms is None
    return Round(
        eligible=eligible,
        why_not=why_not,
        uniform_why=bool(len(batch) and (why_not == why_not[0]).all()),
        reward=ranking.reward,
        score=score,
        propensity=ranking.propensity,
        cost_nanousd=cost,
        bound_nanousd=bound,
        first=first,
        first_bound=first_bound,
        first_cost=first_cost,
        explored=ranking.explored,
        quick=quick,
        paths=paths,
        pairs=pairs,
        dual_price=prices,
        planned_usd=state.curve.cost_at(prices) if state.curve else np.zeros(len(prices)),
        ceiling_usd=plan.per_request_usd,
        has_ceilings=bool(np.count_nonzero(plan.per_request_usd == plan.per_request_usd)),
    )


def reserve_best(
    state: State, rounds: Round, row: int, batch: Requests, *, patient: bool = True
) -> Found:
    """Return the best arm of a row that fits its ceilings and caps; the state is not changed.

    A ``patient`` request waits for its best arm where that fits once money in flight comes back;
    another takes a lower output cap, or the next arm, if that fits now.
    """
    path = rounds.paths.item(row)
    free, ultimate = state.budgets.free(path), state.budgets.ultimate(path)
    why_not = rounds.why_not[row].tolist()
    within = _within_ceilings(state, rounds, row)
    rejected = "over_ceiling"
    for column in np.argsort(-rounds.score[row], kind="stable").tolist():
        if not rounds.eligible[row, column]:
            break
        if not within[column]:
            why_not[column] = CEILING
            continue
        bound = int(rounds.bound_nanousd[row, column])
        if bound <= free:
            return _found(batch, row, column, bound, why_not=why_not)
        need = _least_bound(state, rounds, row, column, batch)
        why_not[column] = CAP
        if need > ultimate:
            if rejected != "budget_busy":
                rejected = "budget_exhausted"
            continue
        if need <= free and (bound > ultimate or not patient):
            # Not all that is free: the next request would have to wait for this one.
            return _lowered(state, batch, row, column, need, why_not)
        rejected = "budget_busy"
        if patient:
            break
    return Found(rejected=rejected, why_not=why_not)


def _lowered(
    state: State, batch: Requests, row: int, column: int, amount: int, why_not: list[int]
) -> Found:
    price, input_tokens = state.prices[column], batch.input_tokens.item(row)
    assert price is not None
    cap = _output_that_fits(price, input_tokens, amount)
    bound = bound_nanousd(price, input_tokens=input_tokens, output_tokens=cap)
    return _found(batch, row, column, bound, cap=cap, why_not=why_not)


def _found(
    batch: Requests, row: int, column: int, reserved: int, *, why_not: list[int],
    cap: int | None = None,
) -> Found:  # fmt: skip
    why_not[column] = 0
    return Found(
        arm=column,
        reserved_nanousd=reserved,
        max_output_tokens=batch.max_output_tokens.item(row) if cap is None else cap,
        why_not=why_not,
    )


def _ranked(state: State, contexts: Contexts, dual_price: Floats, eligible: Bools) -> Ranking:
    """Return the policy's ranking; no policy is asked to choose among no arms."""
    if eligible.shape[1]:
        return state.policy.rank(contexts, dual_price=dual_price, eligible=eligible)
    none = np.zeros(eligible.shape)
    explored = np.zeros(len(contexts), np.bool_)
    return Ranking(reward=none, cost_usd=none, score=none, propensity=none, explored=explored)


def _bounds(state: State, contexts: Contexts) -> Ints:
    thousandths = contexts.input_tokens[:, None] * state.columns.price_input
    thousandths += contexts.max_output_tokens[:, None] * state.columns.price_output
    return -(-thousandths // 1_000)


def _within_ceilings(state: State, rounds: Round, row: int) -> Bools:
    """Return which arms the per-request ceilings of the path allow."""
    places = rounds.pairs.place[rounds.pairs.starts[row] : rounds.pairs.starts[row + 1]]
    places = places[~np.isnan(rounds.ceiling_usd[places])]
    eligible: Bools = rounds.eligible[row]
    if len(places) == 0:
        return eligible
    pacing = state.budgets.rows(rounds.pairs.budgets[places])
    standing = standing_of(pacing, rounds.ceiling_usd[places]).column()
    cost = np.where(eligible, rounds.cost_nanousd[row] / NANO_PER_USD, np.inf)
    allowed: Bools = affordable(
        standing,
        cost,
        cheapest=cost == cost.min(),
        arm_cost_usd=None if state.curve is None else state.curve.arm_cost_usd,
    )
    within: Bools = np.logical_and.reduce(allowed)
    return within


def _least_bound(state: State, rounds: Round, row: int, column: int, batch: Requests) -> int:
    """Return the bound at the learned upper quantile of the output, if that is lower.

    Until enough answers were seen a multiple of the expected cost stands for it: a budget smaller
    than the first bound would never see any.
    """
    bound = int(rounds.bound_nanousd[row, column])
    price, input_tokens = state.prices[column], batch.input_tokens.item(row)
    assert price is not None
    lengths = state.lengths.get(state.catalog.arms[column].arm)
    tokens = lengths.quantile(OUTPUT_SHARE) if lengths else None
    if tokens is None:
        guess = _UNSEEN_MULTIPLE * int(rounds.cost_nanousd[row, column])
        tokens = max(_output_that_fits(price, input_tokens, guess), 1)
    if tokens >= batch.max_output_tokens.item(row):
        return bound
    return bound_nanousd(price, input_tokens=input_tokens, output_tokens=tokens)


def _output_that_fits(price: Price, input_tokens: int, amount: int) -> int:
    """Return the largest output cap whose bound is at most ``amount``; the input fits."""
    input_bound = input_tokens * max(price.input, price.cached or 0)
    return (amount * 1_000 - input_bound) // price.output if price.output else 0
