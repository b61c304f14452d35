"""The pacer: a dual price per budget, so that spend follows the plan.

A pacer is a controller on top of a hard cap, never instead of it. Its state is one fixed-size
record per budget; what it has learned (price, request rate, noise of the costs) outlives windows.

The price comes from the spend curve (:mod:`policy.curve`): it is the price at which the current
policy is expected to spend what the plan has left for the next request. Expected dollars are
charged when a request is decided, not when it settles, so calls in flight cannot be overlooked.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from policy.curve import PRICE_MAX, SpendCurve
from policy.money import NANO_PER_USD
from policy.pace import FAST, MEAN, MEMORY_MS, Pacing, noise_sums, open_usd2
from policy.terms import Bools, Floats, Ints

AIM = 0.99
"""Share of a per-request ceiling that is aimed at; the rest absorbs surprises."""
LINE = 0.995
"""Share of a per-request ceiling up to which arms above it are paid from savings."""
HORIZON = 200.0
"""Requests over which a balance is made good."""
SAFETY = 2.0
"""Standard deviations of the open calls' cost that are held back below a ceiling."""
SAFETY_OWN = 16.0
"""The same for the call to be decided, beyond a few ceilings: one answer in a thousand costs ten
times as much as expected, and many cheaper calls miss what it takes."""
MODEST = 3.0
"""Calls of up to so many ceilings need no such margin."""
START_REQUESTS, START_FADES = 5.0, 50.0
"""So many ceilings may be run ahead at the start, forgotten over so many requests: the first
choices follow the dual price, not the accident of what a single call has cost."""
HELD_MOST = 0.25
"""Share of a ceiling by which what is held for calls in flight may lower the target."""
BURST_REQUESTS = 50.0
"""The cheapest arm may run ahead of a ceiling by so many ceilings; surprises may do so, too."""
_NOISE_GUESS = 0.25  # answers are half as long or twice as long as expected, mostly
_PID = (0.05, 0.5, 0.05)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plan:
    """What budgets may spend, all of shape (m,).

    Parameters
    ----------
    limit_usd : ndarray
        Amount of the window.
    window_start_ms, window_end_ms : ndarray of int64
    per_request_usd : ndarray
        Ceiling of the mean cost of a request in the window; nan where the clock paces.
    paced : ndarray of bool
        Where False the dual price is 0 and the hard cap acts alone.
    pid : ndarray of bool, optional
        Where True the price that was used lately is moved by the errors of rate and balance,
        instead of being read from the spend curve; None means nowhere.
    """

    limit_usd: Floats
    window_start_ms: Ints
    window_end_ms: Ints
    per_request_usd: Floats
    paced: Bools
    pid: Bools | None = None


def dual_price(pacing: Pacing, plan: Plan, curve: SpendCurve | None, *, now_ms: int) -> Floats:
    """Return the dual price of each budget, reward per dollar, for the next request.

    Parameters
    ----------
    pacing : structured ndarray of PACER_DTYPE, shape (m,)
    plan : Plan
        Of the same budgets.
    curve : SpendCurve or None
        None while no context was seen.
    now_ms : int
        Time of the request.

    Returns
    -------
    ndarray, shape (m,)
        Within ``[0, PRICE_MAX]``, never nan. Where several budgets bind one request, take the
        largest: each price alone makes its budget's spend follow the plan.
    """
    target = target_usd(pacing, plan, now_ms=now_ms)
    if curve is None:
        price = _without_curve(pacing, target)
    else:
        price = curve.price_at(target / _bias(pacing))
    if plan.pid is not None and np.count_nonzero(plan.pid):
        price = np.where(plan.pid, _pid(pacing, plan, price, target), price)
    priced: Floats = np.where(plan.paced, np.minimum(np.maximum(price, 0.0), PRICE_MAX), 0.0)
    return priced


def target_usd(pacing: Pacing, plan: Plan, *, now_ms: int) -> Floats:
    """Return the dollars that the plan has for the next request of each budget, at least 0.

    Per request: the ceiling, and the balance spread over the next ``HORIZON`` requests. By the
    clock: what is left of the amount, divided by the requests still expected in the window.
    """
    by_clock = np.isnan(plan.per_request_usd)
    # All budgets of a batch are paced alike almost always.
    clocks = np.count_nonzero(by_clock)
    if clocks == 0:
        return np.maximum(_target_by_request(pacing, plan), 0.0)
    target = _target_by_clock(pacing, plan, now_ms=now_ms)
    if clocks < len(by_clock):
        target = np.where(by_clock, target, _target_by_request(pacing, plan))
    return np.maximum(target, 0.0)


def _target_by_request(pacing: Pacing, plan: Plan) -> Floats:
    held = SAFETY * np.sqrt(_noise(pacing) * open_usd2(pacing))
    ceiling = AIM * plan.per_request_usd
    balance = ceiling * pacing["requests"] - _spent_usd(pacing)
    # A large credit may double the spend, not release it at once. What is held for calls in flight
    # bars dear arms (:func:`affordable`) and must not drive requests off those that are cheap.
    per_request = ceiling + np.minimum((balance - held) / HORIZON, ceiling)
    least = ceiling + np.minimum(balance / HORIZON, 0.0) - HELD_MOST * ceiling
    target: Floats = np.maximum(per_request, least)
    return target


def _target_by_clock(pacing: Pacing, plan: Plan, *, now_ms: int) -> Floats:
    left = plan.limit_usd - _spent_usd(pacing)
    left_ms = np.maximum(plan.window_end_ms - now_ms, 0)
    target: Floats = left / np.maximum(request_rate(pacing, now_ms=now_ms) * left_ms, 1.0)
    return target


def request_rate(pacing: Pacing, *, now_ms: int) -> Floats:
    """Return the expected requests per millisecond of each budget.

    The larger of a slow rate and of what a fast one shows beyond chance (two standard deviations
    of its count): a burst is met at once, and forgotten soon after it has ended.
    """
    memory = np.where(pacing["memory_ms"] > 0, pacing["memory_ms"], MEMORY_MS)
    age = -np.maximum(now_ms - pacing["first_ms"], 1)
    since = -np.maximum(now_ms - pacing["seen_ms"], 0)
    slow = pacing["count_slow"] * np.exp(since / memory)
    fast = pacing["count_fast"] * np.exp(since * FAST / memory)
    sure = np.maximum(fast - 2.0 * np.sqrt(fast), 0.0)
    slow_rate = slow / (memory * -np.expm1(age / memory))
    fast_rate = sure / (memory / FAST * -np.expm1(age * FAST / memory))
    rate: Floats = np.where(pacing["first_ms"] > 0, np.maximum(slow_rate, fast_rate), 0.0)
    return rate


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Standing:
    """Where per-request ceilings stand before a request; arrays of one shape.

    Parameters
    ----------
    ceiling_usd : ndarray
        nan where the budget has none.
    requests, spent_usd : ndarray
        Of this window, calls in flight at their expectation.
    open_usd2 : ndarray
        Sum of squared expected dollars in flight.
    noise : ndarray
        Squared relative error of expected dollars.
    """

    ceiling_usd: Floats
    requests: Floats
    spent_usd: Floats
    open_usd2: Floats
    noise: Floats

    def column(self) -> Standing:
        """Return the same with shape (m, 1), to be compared with the costs of several arms."""
        return Standing(**{name: getattr(self, name)[:, None] for name in self.__slots__})


def standing_of(pacing: Pacing, ceiling_usd: Floats) -> Standing:
    """Return where these budgets stand now, shape (m,)."""
    return Standing(
        ceiling_usd=ceiling_usd,
        requests=pacing["requests"].astype(np.float64),
        spent_usd=_spent_usd(pacing),
        open_usd2=open_usd2(pacing),
        noise=_noise(pacing),
    )


def allowance_usd(standing: Standing) -> Floats:
    """Return what the next request may be expected to cost under each per-request ceiling.

    ``LINE * ceiling * requests so far, this one included - spent - what is held for calls in
    flight``, and a little more at the start; infinite where the budget has no such ceiling. An arm
    above the ceiling that is expected to cost more must not be chosen (:func:`affordable`).
    """
    requests = standing.requests + 1.0
    start = START_REQUESTS * np.exp(-requests / START_FADES)
    line = standing.ceiling_usd * (LINE * requests + start)
    room = line - standing.spent_usd - SAFETY * np.sqrt(standing.noise * standing.open_usd2)
    return np.where(np.isnan(standing.ceiling_usd), np.inf, room)


def affordable(
    standing: Standing, cost_usd: Floats, *, cheapest: Bools, arm_cost_usd: Floats | None = None
) -> Bools:
    """Return which calls per-request ceilings allow; shapes are broadcast.

    A call dearer than a ceiling must be paid from what was saved: it fits if its expected cost,
    with a margin for its own uncertainty, stays below :func:`allowance_usd`. A call below the
    ceiling brings the mean down, and so do the calls of an arm whose mean is below it, the dear
    ones among them included: they fit even while a surprise is made good. The cheapest arm is
    refused only if it is above the ceiling and would run ahead of the line by more than
    ``BURST_REQUESTS`` ceilings, the stated burst.

    Parameters
    ----------
    standing : Standing
    cost_usd : ndarray
        Expected dollars of an eligible arm; inf for others, which are never allowed.
    cheapest : ndarray of bool
        Whether no eligible arm of the request is cheaper.
    arm_cost_usd : ndarray, optional
        Mean dollars of the calls of the same arm (:class:`policy.curve.SpendCurve`).
    """
    ceiling = np.where(np.isnan(standing.ceiling_usd), np.inf, standing.ceiling_usd)
    finite = np.isfinite(cost_usd)
    cost = np.where(finite, cost_usd, 0.0)
    own = SAFETY_OWN * np.sqrt(standing.noise) * np.maximum(cost - MODEST * ceiling, 0.0)
    saved = cost + own <= allowance_usd(standing)
    ahead = standing.spent_usd + cost <= ceiling * (standing.requests + 1.0 + BURST_REQUESTS)
    below = cost <= ceiling
    if arm_cost_usd is not None:
        below = below | (arm_cost_usd <= AIM * ceiling)
    fits = np.where(cheapest, below | ahead, below | saved)
    result: Bools = finite & fits
    return result


def _spent_usd(pacing: Pacing) -> Floats:
    spent: Floats = pacing["spent_nanousd"] / NANO_PER_USD
    return spent


def _noise(pacing: Pacing) -> Floats:
    """Return the squared relative error of expected dollars; a guess before anything settled."""
    prior = 5.0 * (pacing["mean_usd"] / np.maximum(_warmth(pacing), 1e-9)) ** 2
    noise_usd2, scale = noise_sums(pacing)
    scale = scale + prior
    known = (noise_usd2 + _NOISE_GUESS * prior) / np.where(scale > 0, scale, 1.0)
    noise: Floats = np.where(scale > 0, known, _NOISE_GUESS)
    return noise


def _warmth(pacing: Pacing) -> Floats:
    """Return how much of the slow means is observation: they begin at 0."""
    share: Floats = -np.expm1(-pacing["total"] * MEAN)
    return share


def _bias(pacing: Pacing) -> Floats:
    """Return how much more this budget's requests cost than the curve foretells, in [1/4, 4].

    It leans to 1 until some hundred requests were seen.
    """
    planned = pacing["planned_usd"]
    known = planned > 0
    ratio = np.where(known, pacing["mean_usd"] / np.where(known, planned, 1.0), 1.0)
    bias: Floats = np.minimum(np.maximum(ratio, 1e-6) ** _warmth(pacing), 4.0)
    return np.maximum(bias, 0.25)


def _without_curve(pacing: Pacing, target: Floats) -> Floats:
    """Return the mean of the prices used lately; a cautious first guess if there is none."""
    guess = 1.0 / np.maximum(target, 1.0 / PRICE_MAX)
    price: Floats = np.where(pacing["dual_price"] > 0, pacing["dual_price"], guess)
    return price


def _pid(pacing: Pacing, plan: Plan, start: Floats, target: Floats) -> Floats:
    """Return the price used lately, moved by the errors of rate, balance and trend.

    ``start`` is the price of the first request.
    """
    least = 1.0 / PRICE_MAX
    scale = np.maximum(target, least)
    ceiling = np.where(np.isnan(plan.per_request_usd), scale, plan.per_request_usd)
    used = np.where(pacing["total"] > 0, pacing["dual_price"], start)
    # A price of zero could not be moved by factors.
    used = np.maximum(used, 1e-4 / np.maximum(ceiling, least))
    rate = np.clip(pacing["mean_fast_usd"] / scale - 1.0, -5.0, 5.0)
    balance = np.clip(1.0 - target / np.maximum(ceiling, least), -5.0, 5.0)
    trend = np.clip((pacing["mean_fast_usd"] - pacing["mean_usd"]) / scale, -5.0, 5.0)
    gain_rate, gain_balance, gain_trend = _PID
    moved: Floats = used * np.exp(gain_rate * rate + gain_balance * balance + gain_trend * trend)
    return moved
