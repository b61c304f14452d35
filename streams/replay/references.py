"""What a stream could have brought: simple choices and those of one who knew every outcome."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from policy.deploy import route
from policy.money import NANO_PER_USD
from policy.oracle import within_budget
from policy.terms import Bools, Floats, Ints
from streams.replay.setup import Trace, trace_of
from streams.replay.world import World

_GOLDEN = 0.6180339887498949


def references(
    world: World, *, ceiling_nanousd: int | None, seed: int, capacity: float = 1.0
) -> dict[str, Trace]:
    """Return the traces of the references by name.

    ``cheapest`` and ``best_fixed`` are one arm for a whole phase, chosen with hindsight, the
    latter as the best whose mean cost fits. ``best_mix`` draws from the arms that are there,
    without looking at the request, with the best probabilities up to ``capacity`` that the ceiling
    allows; its reward and cost are the expected ones on the same requests. ``oracle`` takes the
    best arm of every request, ``oracle_in_budget`` the best that the ceiling has room for in each
    phase.
    """
    steps = len(world.order)
    phases = world.phases or (slice(0, steps),)
    rng = np.random.default_rng([seed, 2])
    cheapest, fixed, best, within = (np.full(steps, -1, np.int64) for _ in range(4))
    for phase in phases:
        cheapest[phase] = _fixed(world, phase, None, cheapest=True)
        fixed[phase] = _fixed(world, phase, ceiling_nanousd, cheapest=False)
        reward = np.where(world.available[phase], world.reward[phase], -1.0)
        best[phase] = _best(reward, world.cost_nanousd[phase])
        within[phase] = _within(world, phase, ceiling_nanousd)
    scores = np.where(world.available, rng.random(world.available.shape), -1.0)
    random = np.asarray(scores.argmax(axis=1), np.int64)
    choices = {
        "cheapest": cheapest,
        "best_fixed": fixed,
        "random": random,
        "oracle": best,
        "oracle_in_budget": within,
    }
    traces = {name: trace_of(world, choice) for name, choice in choices.items()}
    return traces | {"best_mix": _mixed(world, phases, ceiling_nanousd, capacity, rng)}


def _mixed(
    world: World,
    phases: tuple[slice, ...],
    ceiling_nanousd: int | None,
    capacity: float,
    rng: np.random.Generator,
) -> Trace:
    """Return what the mixture earns and spends in expectation, and arms drawn from it."""
    share = np.zeros(world.reward.shape)
    for phase in phases:
        reward = world.reward[phase].mean(axis=0)
        cost_usd = world.cost_nanousd[phase].mean(axis=0) / NANO_PER_USD
        budget_usd = cost_usd.sum() if ceiling_nanousd is None else ceiling_nanousd / NANO_PER_USD
        available = world.available[phase]
        changed = np.flatnonzero((available[1:] != available[:-1]).any(axis=1)) + 1
        ends = [*changed.tolist(), len(available)]
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            there = available[start]
            most = np.full(int(there.sum()), capacity)
            found = route(reward[there], cost_usd[there], most, budget_usd=budget_usd).share
            rows = slice(phase.start + start, phase.start + end)
            # Fewer arms than the capacities ask for take every request all the same.
            share[rows, np.flatnonzero(there)] = found / found.sum()
    # Evenly spread draws, so that the shares are met in every part of the stream.
    draws = (rng.random() + np.arange(len(share)).reshape(-1, 1) * _GOLDEN) % 1.0
    arm = (share.cumsum(axis=1) < draws).sum(axis=1).clip(max=len(world.recorded.models) - 1)
    return replace(
        trace_of(world, np.asarray(arm, np.int64)),
        reward=(share * world.reward).sum(axis=1),
        cost_nanousd=np.rint((share * world.cost_nanousd).sum(axis=1)).astype(np.int64),
    )


def _fixed(world: World, phase: slice, ceiling_nanousd: int | None, *, cheapest: bool) -> int:
    always: Bools = np.asarray(world.available[phase].all(axis=0))
    ever: Bools = np.asarray(world.available[phase].any(axis=0))
    there = always if always.any() else ever
    cost = np.where(there, world.cost_nanousd[phase].mean(axis=0), np.inf)
    if cheapest:
        return int(cost.argmin())
    fits = cost <= (np.inf if ceiling_nanousd is None else ceiling_nanousd)
    if not (fits & there).any():
        return int(cost.argmin())
    return int(np.where(fits & there, world.reward[phase].mean(axis=0), -1.0).argmax())


def _best(reward: Floats, cost_nanousd: Ints) -> Ints:
    """Return the best arm of each row, of equal ones the cheapest."""
    best = reward == reward.max(axis=1, keepdims=True)
    return np.asarray(np.where(best, cost_nanousd, np.inf).argmin(axis=1), np.int64)


def _within(world: World, phase: slice, ceiling_nanousd: int | None) -> Ints:
    available = world.available[phase]
    reward = np.where(available, world.reward[phase], 0.0)
    if ceiling_nanousd is None:
        return _best(np.where(available, reward, -1.0), world.cost_nanousd[phase])
    # An arm that is not there earns nothing at a price nobody pays.
    cost = np.where(available, world.cost_nanousd[phase] / NANO_PER_USD, 1e3)
    budget_usd = ceiling_nanousd * len(reward) / NANO_PER_USD
    return within_budget(reward, cost, budget_usd=budget_usd).choice
