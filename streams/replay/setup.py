"""How a run is made, and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from policy.calendar import window_start_ms
from policy.catalog import BudgetSpec, Catalog
from policy.money import AMOUNT_MAX
from policy.terms import Arm, Bools, Floats, Ints, Settings
from streams.replay.data import PSEUDO_TOKENS
from streams.replay.world import World

BUDGET = "replay"
_FIRST_MS = 1_700_000_000_000
_STEP_MS = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """How a run is made.

    Parameters
    ----------
    settings : Settings
        Policy and its options; dimensions and segments are taken from the data. With the option
        ``pairwise`` outcomes bring comparisons with another arm's answer instead of rewards.
    ceiling_nanousd : int or None
        Mean cost of a request that must be kept.
    budget_nanousd : int or None
        Amount per window, instead.
    window : str
    in_flight : int
        An outcome arrives after so many later decisions.
    feedback_share : float
        Share of the outcomes that bring a reward; all bring their cost.
    explore : int
        Pulls that an arm without a prior is given.
    controller : {"curve", "pid"}
        Of the pacer.
    """

    settings: Settings
    ceiling_nanousd: int | None = None
    budget_nanousd: int | None = None
    window: str = "total"
    in_flight: int = 0
    feedback_share: float = 1.0
    explore: int = 20
    controller: str = "curve"

    def windows(self, steps: int) -> Ints:
        """Return the number of the budget's window that each step lies in, shape (t,)."""
        starts = [window_start_ms(self.window, at_ms(step)) for step in range(steps)]
        return np.unique(starts, return_inverse=True)[1].astype(np.int64)

    def mean_nanousd(self, steps: int) -> int | None:
        """Return what a request may cost on average: the ceiling, or the budget of all windows."""
        if self.budget_nanousd is None or self.ceiling_nanousd is not None or steps == 0:
            return self.ceiling_nanousd
        return self.budget_nanousd * int(self.windows(steps).max() + 1) // steps


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trace:
    """What happened at each of t steps.

    ``arm`` is -1 where the request was rejected; ``explored`` where chance chose.
    """

    arm: Ints
    reward: Floats
    cost_nanousd: Ints
    dual_price: Floats
    explored: Bools


def trace_of(world: World, arm: Ints) -> Trace:
    """Return the trace of given choices, -1 for none; used for references."""
    steps = np.arange(len(arm))
    return Trace(
        arm=arm,
        reward=np.where(arm >= 0, world.reward[steps, arm], 0.0),
        cost_nanousd=np.where(arm >= 0, world.cost_nanousd[steps, arm], 0),
        dual_price=np.zeros(len(arm)),
        explored=np.zeros(len(arm), np.bool_),
    )


def first_catalog(world: World, setup: Setup, *, cold: bool = False) -> Catalog:
    """Return the catalog that a run begins with.

    Where a file has costs but no tokens, an arm's price is of units of its own: without a prior
    (``cold``) the catalog says how many of them a usual answer takes, as an operator would.
    """
    recorded = world.recorded
    settings = replace(
        setup.settings,
        segments=recorded.segment_names,
        segment_weight=recorded.segment_weight,
        dimensions=recorded.dimensions + len(recorded.segment_names),
    )
    catalog = Catalog(settings=settings)
    usual = PSEUDO_TOKENS if cold and world.recorded.costs_only else None
    for column, name in enumerate(world.recorded.models):
        catalog = catalog.with_arm(
            Arm(
                arm=name,
                price=world.prices[0][column],
                deployed=bool(world.available[0, column]),
                explore=setup.explore,
                prior_output_tokens=usual,
            )
        )
    return catalog.with_budget(
        BudgetSpec(
            budget=BUDGET,
            limit_nanousd=setup.budget_nanousd or AMOUNT_MAX,
            window=setup.window,
            per_request_nanousd=setup.ceiling_nanousd,
            paced=setup.ceiling_nanousd is not None or setup.budget_nanousd is not None,
            controller=setup.controller,
        )
    )


def at_ms(step: int) -> int:
    """Return the time of a step."""
    return _FIRST_MS + step * _STEP_MS
