"""What else the same requests could have brought: simple routers, and one who knew everything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from policy.money import NANO_PER_USD
from policy.oracle import within_budget
from policy.terms import Bools, Floats, Ints
from streams.demo.budgets import PAYERS, roots, share_of
from streams.demo.plan import ARMS, DROP_KEEPS, PRICE_CUT, PRICE_CUT_ARM, Schedule, Truth


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One way to route the requests of the run: mean reward and what it cost."""

    name: str
    reward: float
    spent_usd: float
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class World:
    """Reward and dollars of every arm for every request, as they were when it arrived.

    Parameters
    ----------
    reward, cost_usd : ndarray, shape (n, k)
    root : ndarray of int64, shape (n,)
        Index into the roots.
    money_usd : ndarray
        What each root may spend in the whole run.
    """

    reward: Floats
    cost_usd: Floats
    root: Ints
    money_usd: Floats


RANDOM_NOTE = "costs more than there is"


def make_world(
    schedule: Schedule, truth: Truth, prices: Ints, *, cut_s: float, drop_s: float,
    dropped_arm: str | None, run_nanousd: int,
) -> World:  # fmt: skip
    """Return the world phase by phase: before and after the price cut, and the quality drop.

    ``prices`` has shape (k, 2): the first input and output price of each arm, micro-dollars per
    million tokens.
    """
    n = len(schedule)
    price = np.repeat(prices[None, :, :].astype(np.float64), n, axis=0)
    cut = schedule.at_s >= cut_s
    column = ARMS.index(PRICE_CUT_ARM)
    price[cut, column] = prices[column] // PRICE_CUT
    cost = truth.input_tokens[:, None] * price[:, :, 0] + truth.tokens * price[:, :, 1]
    reward = truth.reward.copy()
    if dropped_arm is not None:
        wrong: Bools = (schedule.at_s >= drop_s) & (schedule.luck >= DROP_KEEPS)
        reward[wrong, ARMS.index(dropped_arm)] = 0.0
    names = roots()
    owners = np.array([names.index(payer.root) for payer in PAYERS], np.int64)
    return World(
        reward=reward,
        cost_usd=cost / (1_000.0 * NANO_PER_USD),
        root=owners[schedule.payer],
        money_usd=np.array([share_of(name) * run_nanousd / NANO_PER_USD for name in names]),
    )


def references(world: World, *, seed: int) -> list[Line]:
    """Return the references: cheapest, random, best fixed arm that fits, and the oracle.

    "Fits" is judged with hindsight and kindly: one arm for each root, the best whose calls for
    all the root's requests cost no more than the root's budget of the whole run, with no window,
    no money in flight and no upper bound to reserve. The oracle spends the same money best,
    knowing every answer beforehand.
    """
    n, k = world.reward.shape
    rng = np.random.default_rng([seed, 3])
    cheapest = np.full(n, int(world.cost_usd.mean(axis=0).argmin()), np.int64)
    fixed, oracle = np.zeros(n, np.int64), np.zeros(n, np.int64)
    chosen: Mapping[str, str] = {}
    for number, root in enumerate(roots()):
        rows = np.flatnonzero(world.root == number)
        total, mean = world.cost_usd[rows].sum(axis=0), world.reward[rows].mean(axis=0)
        fits = total <= world.money_usd[number]
        arm = int(np.where(fits, mean, -1.0).argmax()) if fits.any() else int(total.argmin())
        fixed[rows] = arm
        chosen = {**chosen, root: ARMS[arm]}
        best = within_budget(
            world.reward[rows], world.cost_usd[rows], budget_usd=float(world.money_usd[number])
        )
        oracle[rows] = best.choice
    names = ", ".join(dict.fromkeys(chosen.values()))
    return [
        _line(world, "cheapest arm", cheapest, ARMS[cheapest[0]]),
        _line(world, "random arm", np.asarray(rng.integers(0, k, n), np.int64), RANDOM_NOTE),
        _line(world, "best fixed arm that fits", fixed, names),
        _line(world, "oracle within the budgets", oracle, "knows every answer beforehand"),
    ]


def _line(world: World, name: str, choice: Ints, note: str) -> Line:
    rows = np.flatnonzero(choice >= 0)
    reward = world.reward[rows, choice[rows]].sum() / len(choice)
    spent = float(world.cost_usd[rows, choice[rows]].sum())
    if name == "random arm" and spent <= world.money_usd.sum():
        note = ""
    return Line(name=name, reward=float(reward), spent_usd=spent, note=note)
