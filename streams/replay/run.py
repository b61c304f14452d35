"""One run: a policy over a stream, decided and settled by the same core as in the worker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from policy.decide import decide
from policy.money import TOKENS_MAX, Price
from policy.outcomes import Arrival
from policy.registry import make_policy
from policy.requests import Incoming
from policy.segment_features import with_segments
from policy.settle import settle
from policy.state import Limits, State
from policy.terms import Floats, Learning, Settings
from streams.records import request_digest
from streams.replay.data import DataError, Recorded
from streams.replay.setup import BUDGET, Setup, Trace, at_ms, first_catalog, trace_of
from streams.replay.world import World


def request_id(seed: int, step: int) -> str:
    """Return the id of the request at a step of the stream."""
    return f"{seed}-{step}"


def run(
    world: World,
    setup: Setup,
    *,
    seed: int,
    prior: Recorded | None = None,
    on_step: Callable[[int], None] | None = None,
) -> Trace:
    """Replay the stream once.

    Parameters
    ----------
    world : World
    setup : Setup
    seed : int
        Of the requests' own seeds and of which outcomes bring a reward.
    prior : Recorded, optional
        Learned beforehand with every arm's outcome; arms are matched by name.
    on_step : callable, optional
        Told the number of each step.
    """
    runner = _Runner(world, setup, seed, cold=prior is None)
    if prior is not None:
        runner.learn_prior(prior)
    for step in range(len(world.order)):
        runner.step(step)
        if on_step is not None:
            on_step(step)
    return runner.trace()


class _Runner:
    """The logs of one partition, and the truth that answers its decisions."""

    def __init__(self, world: World, setup: Setup, seed: int, *, cold: bool) -> None:
        self._world = world
        self._setup = setup
        self._seed = seed
        self._catalog = first_catalog(world, setup, cold=cold)
        self._state = State(
            dimensions=self._catalog.settings.dimensions,
            make_policy=make_policy,
            catalog=self._catalog,
            # Nothing expires: an outcome comes when its turn has come.
            limits=Limits(reservation_ttl_ms=10**12),
        )
        self._features = _features(world.recorded, self._catalog.settings)
        count = len(world.order)
        self._rewarded = np.random.default_rng([seed, 1]).random(count) < setup.feedback_share
        self._arm = np.full(count, -1, np.int64)
        self._price = np.zeros(count)
        self._explored = np.zeros(count, np.bool_)
        self._columns = {name: column for column, name in enumerate(world.recorded.models)}
        self._pairwise = bool(setup.settings.options.get("pairwise"))
        self._opponents = np.random.default_rng([seed, 3])

    def learn_prior(self, prior: Recorded) -> None:
        """Teach the policy every outcome of the prior, and show its contexts to the pacer."""
        if prior.features.shape[1] != self._world.recorded.features.shape[1]:
            raise DataError("the prior has another number of features")
        shown = _features(prior, self._catalog.settings)
        features = shown.astype(np.float64)
        columns = [
            (name, prior.models.index(name)) for name in self._columns if name in prior.models
        ]
        start = self._world.available[0]
        for row in range(len(prior)):
            for name, column in columns:
                if not start[self._columns[name]]:
                    continue
                tokens = self._prior_tokens(prior, name, row, column)
                reward, against = self._judged(prior.models, prior.reward[row], column)
                self._state.policy.learn(
                    Learning(
                        arm=name,
                        features=features[row],
                        input_tokens=int(prior.input_tokens[row]),
                        age=0,
                        reward=reward,
                        output_tokens=tokens,
                        against=against,
                        latency_ms=_latency(prior, row, column),
                    )
                )
                self._state.lengths_of(name).add(np.array([tokens]))
            self._state.remember_contexts(
                shown[row : row + 1],
                np.array([prior.input_tokens[row]]),
                np.array([TOKENS_MAX]),
            )

    def _prior_tokens(self, prior: Recorded, name: str, row: int, column: int) -> int:
        """Return the tokens of a prior's call in the units of the stream's price."""
        tokens = int(prior.output_tokens[row, column])
        ours = self._world.prices[0][self._columns[name]]
        theirs = prior.prices[column]
        # Costs without tokens are counted in units that depend on the file.
        cost_only = ours.input == 0 and theirs.input == 0
        return round(tokens * theirs.output / ours.output) if cost_only else tokens

    def step(self, step: int) -> None:
        """Take the outcome whose turn it is, then decide the next request."""
        due = step - 1 - self._setup.in_flight
        if due >= 0 and self._arm[due] >= 0:
            settle(self._state, self._outcome(due, step))
        self._announce(step)
        row = self._world.order[step]
        identity = request_digest(BUDGET, request_id(self._seed, step))
        decided = decide(
            self._state,
            [
                Incoming(
                    offset=step,
                    id=identity,
                    request_print=step,
                    budget=BUDGET,
                    features=self._features[row],
                    input_tokens=int(self._world.recorded.input_tokens[row]),
                    max_output_tokens=TOKENS_MAX,
                    at_ms=at_ms(step),
                    # As the worker does, so that chance falls alike in both.
                    seed=int.from_bytes(identity[:8], "little") ^ self._setup.settings.seed,
                )
            ],
            now_ms=at_ms(step),
        )
        for choice in decided.choices:
            offset = choice.request.offset
            if choice.arm is not None:
                self._arm[offset] = self._columns[choice.arm]
            self._price[offset] = max((b[5] for b in choice.budgets), default=0.0)
            self._explored[offset] = choice.explored

    def _outcome(self, step: int, now: int) -> Arrival:
        arm = int(self._arm[step])
        row = self._world.order[step]
        reward, against = None, None
        if self._rewarded[step]:
            models = self._world.recorded.models
            reward, against = self._judged(models, self._world.reward[step], arm)
        return Arrival(
            offset=self._state.gate.position.outcomes,
            id=request_digest(BUDGET, request_id(self._seed, step)),
            at_ms=at_ms(now),
            input_tokens=int(self._world.recorded.input_tokens[row]),
            output_tokens=int(self._world.recorded.output_tokens[row, arm]),
            reward=reward,
            latency_ms=_latency(self._world.recorded, row, arm),
            against=against,
        )

    def _judged(
        self, models: tuple[str, ...], rewards: Floats, column: int
    ) -> tuple[float, str | None]:
        """Return the reward of a call, or its points against another arm and who that was."""
        if not self._pairwise or len(models) < 2:
            return float(rewards[column]), None
        other = (column + int(self._opponents.integers(1, len(models)))) % len(models)
        points = 0.5 + 0.5 * float(np.sign(rewards[column] - rewards[other]))
        return points, models[other]

    def _announce(self, step: int) -> None:
        """Change the catalog where the world does."""
        available, prices = self._world.available, self._world.prices
        arrived = step > 0 and bool((available[step] != available[step - 1]).any())
        if step == 0 or not (arrived or step in prices):
            return
        catalog = self._catalog
        for column, arm in enumerate(catalog.arms):
            price: Price | None = prices[step][column] if step in prices else arm.price
            deployed = bool(available[step, column])
            catalog = catalog.with_arm(replace(arm, deployed=deployed, price=price))
        self._catalog = catalog
        self._state.set_catalog(catalog)

    def trace(self) -> Trace:
        """Return what happened."""
        base = trace_of(self._world, self._arm)
        return replace(base, dual_price=self._price, explored=self._explored)


def _features(recorded: Recorded, settings: Settings) -> NDArray[np.float32]:
    """Return the features as the worker would make them of such requests."""
    return with_segments(recorded.features, recorded.segments, settings)


def _latency(recorded: Recorded, row: int, column: int) -> int | None:
    return None if recorded.latency_ms is None else int(recorded.latency_ms[row, column])
