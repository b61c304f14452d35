"""What the bandit has learned of one arm: in this partition, and as others publish it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from policy.moments import Moments
from policy.terms import Floats

REWARD_NOISE = 0.25
"""Standard deviation of a reward about its estimate that is assumed beforehand."""
LENGTH_NOISE = 0.7
"""The same for the logarithm of the output tokens."""


class ArmState:
    """What is learned of one arm here, and what other partitions published of it."""

    def __init__(self, width: int, *, forgetting: float) -> None:
        self.pulls = 0
        self.reward = Moments(width, forgetting=forgetting, noise=REWARD_NOISE)
        self.length = Moments(width, forgetting=forgetting, noise=LENGTH_NOISE)
        self.elsewhere: dict[int, tuple[int, Floats, Floats]] = {}
        self._summed: tuple[Floats, Floats, Floats, Floats] | None = None

    def experience(self) -> int:
        """Return the pulls or the outcomes seen, whichever are more, of all partitions."""
        here = max(self.pulls, self.reward.seen)
        # Asked for every arm at every batch, and a partition alone has no others.
        if not self.elsewhere:
            return here
        return here + sum(count for count, _, _ in self.elsewhere.values())

    def moments(self) -> tuple[Floats, Floats]:
        """Return the moments of reward and length, summed over the partitions."""
        reward, length = self.reward.matrix, self.length.matrix
        if not self.elsewhere:
            return reward, length
        known = self._summed
        # The same arrays again while nothing changed: their inverses are kept.
        if known is None or known[0] is not reward or known[1] is not length:
            rewards = [reward, *(more for _, more, _ in self.elsewhere.values())]
            lengths = [length, *(more for _, _, more in self.elsewhere.values())]
            known = self._summed = (reward, length, _sum(rewards), _sum(lengths))
        return known[2], known[3]

    def merge(self, source: int, experience: int, reward: Floats, length: Floats) -> None:
        """Count what another partition has learned, instead of what it had before."""
        # Sums of floats depend on their order: by partition, not by who was read first.
        self.elsewhere = dict(
            sorted({**self.elsewhere, source: (experience, reward, length)}.items())
        )
        self._summed = None

    def forget_features(self) -> None:
        """Keep the means only: the features are others from now on."""
        self.reward.forget_features()
        self.length.forget_features()

    def dump(self) -> bytes:
        """Return what was learned in this partition; equal for equal states."""
        head = np.array([self.pulls], np.float64)
        vector = np.concatenate([head, self.reward.vector(), self.length.vector()])
        return vector.astype("<f8").tobytes()

    def restore(self, state: bytes) -> None:
        """Put back what :meth:`dump` returned.

        Raises
        ------
        ValueError
            If it is of another shape.
        """
        if len(state) % 8 or len(state) < 8:
            raise ValueError(f"state of {len(state)} bytes is no vector of numbers")
        vector = np.frombuffer(state, "<f8").astype(np.float64)
        self.pulls = int(vector[0])
        taken = 1 + self.reward.restore(vector[1:])
        taken += self.length.restore(vector[taken:])
        if taken != len(vector):
            raise ValueError(f"state has {len(vector) - taken} numbers too many")


@lru_cache(maxsize=4_096)
def published(state: bytes, width: int, forgetting: float) -> tuple[int, Floats, Floats]:
    """Return experience and moments of a dumped state; every partition of a worker asks.

    Raises
    ------
    ValueError
        If it is of another shape.
    """
    other = ArmState(width, forgetting=forgetting)
    other.restore(state)
    return other.experience(), other.reward.total(), other.length.total()


def _sum(moments: Sequence[Floats]) -> Floats:
    """Return the sum of moments, in the order given."""
    total = moments[0].copy()
    for more in moments[1:]:
        total += more
    return total
