"""What a replayed stream is made of: requests in order, the truth of every arm, and what changes.

A scenario has three equal phases and changes one arm in the second: its price, its reward, or
whether it is there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from policy.money import Price
from policy.terms import Bools, Floats, Ints
from streams.replay.data import DataError, Recorded

Kind = Literal["stationary", "price-cut", "regression", "onboarding", "stages"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What happens to which arm.

    Parameters
    ----------
    kind : str
    arm : str or None
        By default the dearest for a price cut and onboarding, and for a regression the best whose
        mean cost fits the ceiling.
    price_factor : float
        Price of the arm in the second phase of a price cut, and of an onboarded arm, as a share
        of the recorded one.
    level : float or None
        Reward of every call to the arm: in the second phase of a regression (by default 0.75),
        and of an onboarded arm (by default as recorded).
    first : int
        Arms at the start of ``stages``; the others arrive evenly, in order of release.
    """

    kind: Kind = "stationary"
    arm: str | None = None
    price_factor: float | None = None
    level: float | None = None
    first: int = 5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class World:
    """The stream, step by step; t steps, k arms.

    Parameters
    ----------
    order : ndarray of int64, shape (t,)
        Row of the recorded data at each step.
    reward : ndarray, shape (t, k)
    cost_nanousd : ndarray of int64, shape (t, k)
    available : ndarray of bool, shape (t, k)
    prices : dict
        By the step before which they become known: the prices of all arms.
    phases : tuple of slices
    subject : int or None
        Column of the arm that a scenario is about.
    """

    recorded: Recorded
    order: Ints
    reward: Floats
    cost_nanousd: Ints
    available: Bools
    prices: dict[int, tuple[Price, ...]]
    phases: tuple[slice, ...]
    subject: int | None


def make_world(
    recorded: Recorded,
    scenario: Scenario,
    *,
    seed: int,
    requests: int | None = None,
    ceiling_nanousd: int | None = None,
) -> World:
    """Return the stream of one seed: a permutation, or ``requests`` draws with replacement.

    Raises
    ------
    DataError
        If the scenario names an arm that the data does not have, or needs release dates.
    """
    rng = np.random.default_rng(seed)
    count = len(recorded)
    order = rng.permutation(count) if requests is None else rng.integers(0, count, requests)
    world = World(
        recorded=recorded,
        order=order,
        reward=recorded.reward[order],
        cost_nanousd=recorded.cost_nanousd()[order],
        available=np.ones((len(order), len(recorded.models)), np.bool_),
        prices={0: recorded.prices},
        phases=(),
        subject=None,
    )
    if scenario.kind == "stationary":
        return world
    if scenario.kind == "stages":
        return _arriving(world, scenario)
    third = len(order) // 3
    phases = (slice(0, third), slice(third, 2 * third), slice(2 * third, len(order)))
    subject = _subject(recorded, scenario, ceiling_nanousd)
    world = replace(world, phases=phases, subject=subject)
    if scenario.kind == "price-cut":
        factor = 0.01 if scenario.price_factor is None else scenario.price_factor
        return _repriced(world, factor, phases[1].start, phases[2].start)
    if scenario.kind == "regression":
        level = 0.75 if scenario.level is None else scenario.level
        return _levelled(world, level, phases[1])
    available = world.available.copy()
    available[phases[0], subject] = False
    world = replace(world, available=available)
    if scenario.price_factor is not None:
        world = _repriced(world, scenario.price_factor, 0, None)
    if scenario.level is not None:
        world = _levelled(world, scenario.level, slice(0, len(order)))
    return world


def _subject(recorded: Recorded, scenario: Scenario, ceiling_nanousd: int | None) -> int:
    cost = recorded.cost_nanousd().mean(axis=0)
    if scenario.arm is not None:
        if scenario.arm not in recorded.models:
            raise DataError(f"there is no arm {scenario.arm!r}; there are {recorded.models}")
        return recorded.models.index(scenario.arm)
    if scenario.kind == "regression":
        fits = cost <= (np.inf if ceiling_nanousd is None else ceiling_nanousd)
        fits = fits if fits.any() else cost == cost.min()
        return int(np.where(fits, recorded.reward.mean(axis=0), -1.0).argmax())
    return int(cost.argmax())


def _repriced(world: World, factor: float, start: int, end: int | None) -> World:
    """Multiply the subject's price by ``factor`` from one step to another."""
    subject = world.subject
    assert subject is not None
    old = world.prices[0][subject]
    new = Price(
        version=old.version + 1,
        input=round(old.input * factor),
        output=max(round(old.output * factor), 1),
    )
    changed = tuple(new if a == subject else p for a, p in enumerate(world.prices[0]))
    prices = {**world.prices, start: changed}
    stop = len(world.order) if end is None else end
    if end is not None:
        back = replace(old, version=old.version + 2)
        prices[end] = tuple(back if a == subject else p for a, p in enumerate(changed))
    rows = world.order[start:stop]
    tokens_in = world.recorded.input_tokens[rows]
    tokens_out = world.recorded.output_tokens[rows, subject]
    cost = world.cost_nanousd.copy()
    cost[start:stop, subject] = -(-(tokens_in * new.input + tokens_out * new.output) // 1_000)
    return replace(world, prices=prices, cost_nanousd=cost)


def _levelled(world: World, level: float, phase: slice) -> World:
    if not 0.0 <= level <= 1.0:
        raise DataError(f"level must be in [0, 1], got {level}")
    reward = world.reward.copy()
    reward[phase, world.subject] = level
    return replace(world, reward=reward)


def _arriving(world: World, scenario: Scenario) -> World:
    """Let the arms arrive in the order of their release: some at the start, the others evenly."""
    release = world.recorded.release
    if release is None:
        raise DataError("the scenario stages needs release dates")
    order = sorted(range(len(release)), key=lambda arm: (release[arm], arm))
    late = len(order) - scenario.first
    available = world.available.copy()
    for place, arm in enumerate(order[scenario.first :], start=1):
        available[: len(world.order) * place // (late + 1), arm] = False
    return replace(world, available=available)
