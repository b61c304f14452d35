"""The published package ``paretobandit`` on the same stream, as its paper sets it up.

It is not a dependency: ``uv run --with paretobandit tollway replay … --published``. It routes on
the vectors that its own priors were made for, the array ``features`` (25 principal components and
a constant), whatever the policies beside it use. Its priors come from 8,373 prompts with every
arm's outcome, which are not in the data.
"""

from __future__ import annotations

import importlib
import logging
from collections import deque
from typing import Any

import numpy as np

from policy.money import NANO_PER_USD
from policy.terms import Floats
from streams.replay.data import DataError
from streams.replay.setup import Setup, Trace, trace_of
from streams.replay.world import World

WIDTH = 26
USD_PER_MTOK = {
    "meta-llama/llama-3.1-8b-instruct": (0.10, 0.10),
    "mistralai/mistral-large-2512": (0.50, 1.50),
    "google/gemini-2.5-pro": (1.25, 10.0),
}
"""List prices of its experiments: its priors are for these arms."""


def check_published(models: tuple[str, ...], vectors: Floats, setup: Setup) -> None:
    """Raise ``DataError`` where the package cannot be run on this data."""
    if set(models) != set(USD_PER_MTOK):
        raise DataError(f"the published package has priors for {sorted(USD_PER_MTOK)} only")
    if vectors.shape[1] != WIDTH:
        raise DataError(f"the published package needs features of {WIDTH} numbers")
    if setup.ceiling_nanousd is None:
        raise DataError("the published package needs --ceiling")


def run_published(world: World, vectors: Floats, setup: Setup, *, seed: int) -> Trace:
    """Replay the stream once.

    Cost and reward arrive together, ``in_flight`` requests late; the true cost is put where the
    package reads it, as all its experiments do. A price cut is announced to it.

    Raises
    ------
    ImportError
        If the package is not installed.
    DataError
        If arms come and go: the package has no way to deploy and withdraw them.
    """
    assert setup.ceiling_nanousd is not None
    if not world.available.all():
        raise DataError("the published package cannot replay arms that come and go")
    router = _router(setup.ceiling_nanousd / NANO_PER_USD, seed)
    columns = {name: column for column, name in enumerate(world.recorded.models)}
    arm = np.zeros(len(world.order), np.int64)
    waiting: deque[tuple[str, float]] = deque()
    for step, row in enumerate(world.order):
        if step > 0 and step in world.prices:
            _reprice(router, world, step)
        if len(waiting) > setup.in_flight:
            router.process_feedback(*waiting.popleft())
        name, log = router.route(vectors[row])
        arm[step] = columns[name]
        log.cost_usd = float(world.cost_nanousd[step, arm[step]]) / NANO_PER_USD
        waiting.append((log.request_id, float(world.reward[step, arm[step]])))
    return trace_of(world, arm)


def _router(ceiling_usd: float, seed: int) -> Any:
    package = importlib.import_module("pareto_bandit")
    pacer = importlib.import_module("pareto_bandit.budget_pacer")
    # It logs a line for each request that its pacer leaves no model for.
    logging.getLogger("pareto_bandit").setLevel(logging.ERROR)
    return package.BanditRouter.create(
        model_registry={
            name: {"input_cost_per_m": price_in, "output_cost_per_m": price_out}
            for name, (price_in, price_out) in USD_PER_MTOK.items()
        },
        feature_service=package.FeatureService.for_precomputed(WIDTH),
        priors="warmup",
        cost_penalty=0.0,
        budget_pacer=pacer.BudgetPacer(target_avg_spend_usd=ceiling_usd),
        bandit_seed=seed,
    )


def _reprice(router: Any, world: World, step: int) -> None:
    for column, name in enumerate(world.recorded.models):
        factor = world.prices[step][column].output / world.recorded.prices[column].output
        price_in, price_out = USD_PER_MTOK[name]
        router.update_model_pricing(
            name, input_cost_per_m=price_in * factor, output_cost_per_m=price_out * factor
        )
