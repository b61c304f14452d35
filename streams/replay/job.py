"""Everything that one replay runs, and its result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from policy.terms import Settings
from streams.replay.data import Recorded
from streams.replay.published import check_published, run_published
from streams.replay.run import run
from streams.replay.setup import Setup, Trace
from streams.replay.summary import summarise
from streams.replay.world import Scenario, World, make_world

FIRST_SEED = 3000


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What to replay: a stream, maybe something to learn before it, and the policies.

    ``published`` is the stream with the vectors of the published package, to run that beside.
    ``capacity`` is the largest share that the reference ``best_mix`` may give an arm.
    """

    stream: Recorded
    prior: Recorded | None
    policies: Mapping[str, Settings]
    setup: Setup
    scenario: Scenario
    seeds: int
    requests: int | None
    published: Recorded | None = None
    capacity: float = 1.0

    def steps(self) -> int:
        """Return how many decisions will be made."""
        return len(self.policies) * self.seeds * (self.requests or len(self.stream))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Result:
    """The summaries by name, and the first seed's stream with what each policy did on it."""

    policies: dict[str, dict[str, Any]]
    references: dict[str, dict[str, Any]]
    world: World
    traces: dict[str, Trace]

    def as_json(self) -> dict[str, Any]:
        """Return what ``--json`` prints."""
        return {"policies": self.policies, "references": self.references}


def replay(job: Job, on_step: Callable[[int], None] | None = None) -> Result:
    """Run every policy on every seed's stream; ``on_step`` is told of each decision.

    Raises
    ------
    DataError
        If the scenario or the prior does not go with the data.
    """
    # With it comes a solver, for whose import other commands need not wait.
    from streams.replay.references import references

    vectors = None if job.published is None else job.published.features.astype(np.float64)
    if vectors is not None:
        check_published(job.stream.models, vectors, job.setup)
    seeds = [FIRST_SEED + number for number in range(job.seeds)]
    ceiling = job.setup.mean_nanousd(job.requests or len(job.stream))
    worlds = [
        make_world(
            job.stream, job.scenario, seed=seed, requests=job.requests, ceiling_nanousd=ceiling
        )
        for seed in seeds
    ]
    known = [
        references(world, ceiling_nanousd=ceiling, seed=seed, capacity=job.capacity)
        for world, seed in zip(worlds, seeds, strict=True)
    ]

    def summary(traces: list[Trace]) -> dict[str, Any]:
        return summarise(worlds, traces, known, setup=job.setup, scenario=job.scenario)

    policies, first = {}, {}
    for name, settings in job.policies.items():
        setup = replace(job.setup, settings=settings)
        traces = [
            run(world, setup, seed=seed, prior=job.prior, on_step=on_step)
            for world, seed in zip(worlds, seeds, strict=True)
        ]
        policies[name], first[name] = summary(traces), traces[0]
    if vectors is not None:
        for traces_of_seed, world, seed in zip(known, worlds, seeds, strict=True):
            traces_of_seed["paretobandit"] = run_published(world, vectors, job.setup, seed=seed)
    return Result(
        policies=policies,
        references={name: summary([traces[name] for traces in known]) for name in known[0]},
        world=worlds[0],
        traces=first,
    )
