"""Deciding and learning without Kafka, beside the published package ``paretobandit``.

Both get the same vectors, in batches whose outcomes come when the batch has been decided:

- ``tollway``: what a worker does, ``decide`` and ``settle``: dual prices, ranking, reservations on
  every budget of the path, memory of each decision, pacers, windows, learning of reward and cost.
- ``tollway_policy``: the policy and the pacer alone, without reservations and their bookkeeping:
  as much as the package does.
- ``paretobandit``: ``route`` and ``process_feedback``, with its pacer in its default mode.
"""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from policy.curve import SpendCurve, spend_curve
from policy.money import NANO_PER_USD
from policy.pace import PACER_DTYPE, charge, correct, hold
from policy.pacer import Plan, dual_price
from policy.pareto import Pareto
from policy.state import CURVE_EVERY_MOST, RING
from policy.terms import Contexts, Floats, Ints, Lessons
from streams.bench.core import NOW_MS, HotPath, Say, warmed
from streams.bench.figures import ratio, ratio_lines, spread, table
from streams.bench.workload import Workload

BATCHES = (1, 32, 256, 2_048)
MAIN_BATCH = 256
LONGER = 8
"""So many times the requests are timed of the policy alone: it would else be done in a moment,
while the speed of the processor changes by half within seconds."""
INPUT_TOKENS = 500
MEAN_USD = 6.6e-4
"""What a request may cost on average, for the pacers of all three."""


class Package:
    """The package's router with its pacer, on vectors that it is given."""

    def __init__(self, router: Any, rewards: Floats, arms: Sequence[str]) -> None:
        self._router, self._rewards = router, rewards
        self._columns = {arm: column for column, arm in enumerate(arms)}

    def run(self, vectors: Floats, *, batch: int) -> None:
        """Route and give feedback, a batch at a time."""
        router, columns = self._router, self._columns
        rewards = self._rewards.tolist()
        for start in range(0, len(vectors), batch):
            asked = []
            for row in range(start, min(start + batch, len(vectors))):
                model, log = router.route(vectors[row], input_tokens=INPUT_TOKENS)
                asked.append((log.request_id, rewards[row][columns[model]]))
            for request_id, reward in asked:
                router.process_feedback(request_id, reward)


def make_package(workload: Workload, rewards: Floats) -> Package | None:
    """Return the package, set up for the same arms and prices; None if it is not installed."""
    try:
        package = importlib.import_module("pareto_bandit")
        pacer = importlib.import_module("pareto_bandit.budget_pacer")
    except ImportError:
        return None
    # It logs a line for each request that its pacer leaves no model for.
    logging.getLogger("pareto_bandit").setLevel(logging.ERROR)
    catalog = workload.catalog()
    registry = {
        arm.arm: {
            "input_cost_per_m": arm.price.input / 1e6,
            "output_cost_per_m": arm.price.output / 1e6,
            "time_to_first_token_seconds": 0.5,
        }
        for arm in catalog.arms
        if arm.price is not None
    }
    router = package.BanditRouter(
        registry,
        feature_service=package.FeatureService.for_precomputed(workload.features),
        budget_pacer=pacer.BudgetPacer(MEAN_USD),
        bandit_seed=0,
    )
    return Package(router, rewards, list(registry))


class Bare:
    """The policy and a pacer alone: rank at the dual price, count, charge, learn, correct."""

    def __init__(self, workload: Workload, rewards: Floats, tokens: Ints) -> None:
        catalog = workload.catalog()
        self._rewards, self._tokens = rewards, tokens
        self._policy = Pareto(catalog.settings)
        self._policy.set_arms(catalog.arms)
        self._arms = [arm.arm for arm in catalog.arms]
        self._prices = [arm.price for arm in catalog.arms if arm.price is not None]
        self._input = np.array([price.input for price in self._prices])
        self._output = np.array([price.output for price in self._prices])
        self._pacing, self._curve_at = np.zeros(1, PACER_DTYPE), 0
        self._curve: SpendCurve | None = None
        self._plan = Plan(
            limit_usd=np.array([1e6]), window_start_ms=np.array([0]),
            window_end_ms=np.array([1 << 50]), per_request_usd=np.array([MEAN_USD]),
            paced=np.array([True]),
        )  # fmt: skip

    def run(self, contexts: Contexts, *, batch: int) -> None:
        """Decide and learn, a batch at a time."""
        for start in range(0, len(contexts), batch):
            part = _part(contexts, slice(start, start + batch))
            chosen, costs = self._decide(part)
            self._learn(part, start, chosen, costs)

    def _decide(self, contexts: Contexts) -> tuple[Ints, Ints]:
        """Rank, and charge the pacer; return each request's arm and expected nano-dollars."""
        policy, count = self._policy, len(contexts)
        curve = self._fresh_curve(contexts)
        price = dual_price(self._pacing, self._plan, curve, now_ms=NOW_MS)
        ranking = policy.rank(
            contexts,
            dual_price=np.full(count, price.item()),
            eligible=np.ones((count, len(self._arms)), np.bool_),
        )
        chosen = ranking.score.argmax(axis=1)
        costs = np.rint(ranking.cost_usd[np.arange(count), chosen] * NANO_PER_USD).astype(np.int64)
        hold(self._pacing, np.zeros(count, np.int64), costs)
        charge(self._pacing, requests=np.array([count]), cost_nanousd=costs.sum(keepdims=True),
               dual_price=price, planned_usd=curve.cost_at(price), now_ms=NOW_MS)  # fmt: skip
        # As a worker does, only the arms that were chosen are told of it.
        for column in sorted(set(chosen.tolist())):
            mine = chosen == column
            policy.decided_all(
                self._arms[column], contexts.features[mine], explored=ranking.explored[mine]
            )
        return chosen, costs

    def _learn(self, contexts: Contexts, start: int, chosen: Ints, expected: Ints) -> None:
        count = len(chosen)
        tokens, rewards = self._tokens[start : start + count], self._rewards[start : start + count]
        inputs = np.full(count, INPUT_TOKENS)
        cost = -(-(inputs * self._input[chosen] + tokens * self._output[chosen]) // 1_000)
        correct(self._pacing, np.zeros(count, np.int64), delta_nanousd=cost - expected,
                expected_nanousd=expected)  # fmt: skip
        for column in sorted(set(chosen.tolist())):
            mine = (chosen == column).nonzero()[0]
            self._policy.learn_all(
                Lessons(
                    arm=self._arms[column], features=contexts.features[mine],
                    input_tokens=inputs[mine],
                    age=np.full(len(mine), count), reward=rewards[mine, column],
                    cost_nanousd=cost[mine], output_tokens=tokens[mine],
                    latency_ms=np.full(len(mine), 500), against=[None] * len(mine),
                    prices=[self._prices[column]] * len(mine),
                )
            )  # fmt: skip

    def _fresh_curve(self, contexts: Contexts) -> SpendCurve:
        total = int(self._pacing["total"][0])
        if self._curve is None or total - self._curve_at >= CURVE_EVERY_MOST:
            few = _part(contexts, slice(0, RING))
            eligible = np.ones((len(few), len(self._arms)), np.bool_)
            self._curve = spend_curve(*self._policy.estimates(few), eligible)
            self._curve_at = total
        return self._curve


def _part(contexts: Contexts, part: slice) -> Contexts:
    return Contexts(
        features=contexts.features[part], input_tokens=contexts.input_tokens[part],
        max_output_tokens=contexts.max_output_tokens[part], seeds=contexts.seeds[part],
    )  # fmt: skip


def measure(
    *, requests: int, rounds: int, arms: int, features: int, say: Say,
    batches: Sequence[int] = BATCHES,
) -> dict[str, Any]:  # fmt: skip
    """Return microseconds a request of the three at every batch, and the ratios.

    The programs take turns within a round, so that what else the machine does meets all of them.
    """
    workload = Workload(arms=arms, features=features, budgets=1)
    rng = np.random.default_rng(1)
    longer = LONGER * requests
    rewards, tokens = rng.random((longer, arms)), rng.integers(50, 300, longer)
    worker, bare = warmed(workload, chunk=256), Bare(workload, rewards, tokens)
    package = make_package(workload, rewards)
    us: dict[str, dict[int, list[float]]] = {}
    for number, batch in ((n, b) for n in range(rounds) for b in batches):
        # One by one it takes longer than the package.
        times = LONGER if batch > 1 else 1
        vectors = workload.vectors(times * requests, number=number)
        alone = _timed(partial(bare.run, _contexts(vectors), batch=batch))
        seconds = {
            "tollway": _worker(worker, workload, requests, (number, batch)),
            "tollway_policy": alone / times,
        }
        if package is not None:
            seconds["paretobandit"] = _timed(partial(package.run, vectors[:requests], batch=batch))
        for name, spent in seconds.items():
            us.setdefault(name, {}).setdefault(batch, []).append(spent / requests * 1e6)
        told = ", ".join(f"{name} {times[batch][-1]:.1f}" for name, times in us.items())
        say(f"round {number + 1} of {rounds}, batch {batch}: us a request: {told}")
    shape = {"arms": arms, "features": features, "requests": requests, "rounds": rounds}
    return _result(us, shape)


def _result(us: dict[str, dict[int, list[float]]], shape: dict[str, int]) -> dict[str, Any]:
    """Return medians and ratios; those without a suffix are of batch 256, if it was measured."""
    ratios: dict[str, float] = {}
    theirs = us.get("paretobandit", {})
    for mine, name in (("tollway", "paretobandit"), ("tollway_policy", "paretobandit_policy")):
        found = {batch: ratio(theirs[batch], us[mine][batch]) for batch in theirs}
        if MAIN_BATCH in found:
            ratios[name] = found[MAIN_BATCH]
        ratios |= {f"{name}_batch_{batch}": value for batch, value in found.items()}
    missing = {} if theirs else {"missing": "paretobandit is not installed: no ratio"}
    return {
        "us_per_request": {
            name: {str(batch): spread(values) for batch, values in times.items()}
            for name, times in us.items()
        },
        "ratios": ratios,
        "shape": shape,
        **missing,
    }


def show(result: dict[str, Any]) -> str:
    """Return the result as a table."""
    rows = [
        [name, batch, *us.values()]
        for name, times in result["us_per_request"].items()
        for batch, us in times.items()
    ]
    text = table(rows, header=["us of processor a request", "batch", "median", "min", "max"])
    return "\n".join([text, result.get("missing") or ratio_lines(result["ratios"])])


def _worker(path: HotPath, workload: Workload, requests: int, place: tuple[int, int]) -> float:
    """Return the seconds of deciding and settling; reading the records is not part of it."""
    number, batch = place
    # No id twice: batches of one round are of different requests with the same vectors.
    tag = f"{number}-{batch}"
    asked = workload.requests(requests, number=number, tag=tag)
    told = workload.outcomes(requests, number=number, tag=tag)
    batches = []
    for start in range(0, requests, batch):
        part = slice(start, start + batch)
        batches.append((path.incoming(asked[part]), path.arrivals(told[part])))

    def run() -> None:
        for incoming, arrivals in batches:
            path.decide(incoming)
            path.settle(arrivals)

    return _timed(run)


def _contexts(vectors: Floats) -> Contexts:
    count = len(vectors)
    return Contexts(
        features=np.hstack([vectors, np.ones((count, 1))]),
        input_tokens=np.full(count, INPUT_TOKENS), max_output_tokens=np.full(count, 1_024),
        seeds=np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15),
    )  # fmt: skip


def _timed(run: Callable[[], None]) -> float:
    begun = time.process_time()
    run()
    return time.process_time() - begun
