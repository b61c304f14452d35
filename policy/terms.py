"""The vocabulary of ``policy``: what a policy is given and what it answers.

Shapes use ``n`` for the requests of one batch, ``k`` for the arms of the catalog in its order and
``d`` for the features, the constant 1.0 being the last of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from policy.money import Price

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Seeds = NDArray[np.uint64]


class PolicyError(Exception):
    """Base of what ``policy`` raises, besides ``ValueError`` for a wrong argument."""


class UnknownArmError(PolicyError):
    """An arm is named that the catalog does not hold."""

    def __init__(self, arm: str) -> None:
        super().__init__(f"unknown arm {arm!r}")
        self.arm = arm


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """A model at a provider, as the catalog describes it.

    An arm without a price is never routed to. ``prior_reward`` and ``prior_output_tokens`` are
    what an operator expects before any outcome; ``explore`` is how many requests a new arm is
    given, within the budget, whatever its estimates say.
    """

    arm: str
    price: Price | None
    deployed: bool = True
    capabilities: frozenset[str] = frozenset()
    context_tokens_max: int | None = None
    prior_reward: float | None = None
    prior_output_tokens: int | None = None
    explore: int = 20


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Contexts:
    """What is known of the requests of a batch when they are routed.

    Parameters
    ----------
    features : ndarray, shape (n, d)
        Last column 1.0.
    input_tokens, max_output_tokens : ndarray of int64, shape (n,)
    seeds : ndarray of uint64, shape (n,)
        One per request, from its id: all chance comes from here, so that a replay repeats it.
    """

    features: Floats
    input_tokens: Ints
    max_output_tokens: Ints
    seeds: Seeds

    def __len__(self) -> int:
        return len(self.input_tokens)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ranking:
    """A policy's answer for a batch: what it expects of every arm, and in which order it prefers.

    Parameters
    ----------
    reward : ndarray, shape (n, k)
        Estimated reward in [0, 1], without any bonus.
    cost_usd : ndarray, shape (n, k)
        Expected dollars of the call; 0 where the arm has no price.
    score : ndarray, shape (n, k)
        Higher is better; the best arm that is eligible and fits its budgets is chosen. The dual
        price is already in it. Minus infinity bars an arm: it is not taken even if no other fits.
    propensity : ndarray, shape (n, k)
        Probability that this policy, in this state, would have put the arm first among the
        eligible ones. Rows sum to one where any arm is eligible.
    explored : ndarray of bool, shape (n,)
        Where chance or a forced pull, not the estimate, put the first arm first.
    """

    reward: Floats
    cost_usd: Floats
    score: Floats
    propensity: Floats
    explored: Bools


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Learning:
    """What one outcome teaches about the arm that was chosen; a part that is unknown is None.

    ``age`` is how many decisions of this partition were made since this one. ``cost_nanousd`` is
    the true cost; ``output_tokens`` is known when usage was reported. ``price`` is the price that
    the decision had pinned; None means the arm's current one. ``against`` is the arm whose answer
    a comparative reward compares with.
    """

    arm: str
    features: Floats
    input_tokens: int
    age: int
    reward: float | None = None
    cost_nanousd: int | None = None
    output_tokens: int | None = None
    price: Price | None = None
    latency_ms: int | None = None
    against: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lessons:
    """What several outcomes teach about one arm, in their order; see :class:`Learning`.

    Parameters
    ----------
    arm : str
    features : ndarray, shape (n, d)
    input_tokens, age : ndarray of int64, shape (n,)
    reward : ndarray, shape (n,)
        nan where unknown.
    cost_nanousd, output_tokens, latency_ms : ndarray of int64, shape (n,)
        Negative where unknown.
    prices : sequence of n Price or None
    against : sequence of n str or None
    """

    arm: str
    features: Floats
    input_tokens: Ints
    age: Ints
    reward: Floats
    cost_nanousd: Ints
    output_tokens: Ints
    latency_ms: Ints
    prices: Sequence[Price | None]
    against: Sequence[str | None]

    def __len__(self) -> int:
        return len(self.age)

    def __iter__(self) -> Iterator[Learning]:
        for row, price in enumerate(self.prices):
            reward, cost = self.reward.item(row), self.cost_nanousd.item(row)
            output, latency = self.output_tokens.item(row), self.latency_ms.item(row)
            yield Learning(
                arm=self.arm,
                features=self.features[row],
                input_tokens=self.input_tokens.item(row),
                age=self.age.item(row),
                reward=None if reward != reward else reward,
                cost_nanousd=None if cost < 0 else cost,
                output_tokens=None if output < 0 else output,
                price=price,
                latency_ms=None if latency < 0 else latency,
                against=self.against[row],
            )

    @classmethod
    def of(cls, learning: Learning) -> Lessons:
        """Return what one outcome teaches."""
        cost, output, latency = learning.cost_nanousd, learning.output_tokens, learning.latency_ms
        return cls(
            arm=learning.arm,
            features=np.asarray(learning.features)[None],
            input_tokens=np.array([learning.input_tokens], np.int64),
            age=np.array([learning.age], np.int64),
            reward=np.array([np.nan if learning.reward is None else learning.reward]),
            cost_nanousd=np.array([-1 if cost is None else cost], np.int64),
            output_tokens=np.array([-1 if output is None else output], np.int64),
            latency_ms=np.array([-1 if latency is None else latency], np.int64),
            prices=[learning.price],
            against=[learning.against],
        )


class Policy(Protocol):
    """Decides which arm is worth its price for which request; one file each.

    A policy is deterministic: the same calls in the same order give the same numbers. It holds
    learned state per arm, which :meth:`dump` and :meth:`load` carry over a restart. State changes
    only in :meth:`set_arms`, :meth:`decided`, :meth:`learn` and :meth:`load`.
    """

    name: str

    def set_arms(self, arms: tuple[Arm, ...]) -> None:
        """Take the arms of the catalog, in column order; what was learned of the others is kept."""

    def rank(self, contexts: Contexts, *, dual_price: Floats, eligible: Bools) -> Ranking:
        """Rank the arms for each request; the state does not change.

        ``dual_price`` has shape (n,), reward per dollar; ``eligible`` has shape (n, k).
        """

    def decided(self, arm: str, features: Floats, *, explored: bool) -> None:
        """Note that a decision for ``arm`` took effect (also when a log is folded)."""

    def learn(self, learning: Learning) -> None:
        """Take in one outcome, at once and in order."""

    def dump(self, arm: str) -> bytes:
        """Return what was learned of one arm, equal for equal state."""

    def load(self, arm: str, state: bytes) -> None:
        """Put back what :meth:`dump` returned; ``ValueError`` if it is of another shape."""

    def merge(self, arm: str, source: int, state: bytes) -> None:
        """Let ``rank`` also count what partition ``source`` has learned; replaces its last."""


@runtime_checkable
class BatchPolicy(Policy, Protocol):
    """A policy that takes many records at once; other policies are given them one by one.

    ``in_batches`` is False where an option makes the order of different arms' records matter, or
    scores follow from more than reward, cost and chance.
    """

    in_batches: bool

    def estimates(self, contexts: Contexts) -> tuple[Floats, Floats]:
        """Return reward and dollars as :meth:`Policy.rank` does, shape (n, k) each, unscored."""

    def decided_all(self, arm: str, features: Floats, *, explored: Bools) -> None:
        """As :meth:`Policy.decided` for decisions in their order, features of shape (n, d)."""

    def learn_all(self, lessons: Lessons) -> None:
        """As :meth:`Policy.learn` for each in its order, however they are divided into calls."""


@runtime_checkable
class SpansArms(Protocol):
    """A policy in which what is learned of one arm changes what is held of the others.

    Its arms are checkpointed together: a kill between the pages of two arms would leave a state
    that never was.
    """

    spans_arms: Literal[True]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Which policy, its options, the number of features without the constant, and the segments.

    ``features`` is the version of what makes them, empty for what producers send and for the
    shipped encoder: what was learned from other features is not taken over.
    Reward windows are kept for each of the ``segments``; requests of any other count under
    ``other``, so that a producer cannot make state grow by inventing names. With a
    ``segment_weight`` the last of the ``dimensions`` are columns for the segments
    (:mod:`policy.segment_features`).
    """

    policy: str = "pareto"
    dimensions: int = 64
    seed: int = 0
    options: dict[str, float | int | str | bool] = field(default_factory=dict)
    segments: tuple[str, ...] = ()
    segment_weight: float = 0.0
    features: str = ""

    @property
    def segment_columns(self) -> int:
        """Number of features that say which segment a request is of."""
        return len(self.segments) if self.segment_weight > 0.0 else 0

    @property
    def given(self) -> int:
        """Number of features that a request or its encoder brings."""
        return self.dimensions - self.segment_columns
