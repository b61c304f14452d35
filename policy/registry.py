"""The policies by name; a new one is a file and a line here."""

from __future__ import annotations

from collections.abc import Callable

from policy.baselines.batch_split import BatchSplit
from policy.baselines.cheapest import Cheapest
from policy.baselines.fixed import Fixed
from policy.baselines.greedy import Greedy
from policy.baselines.knn_cost import KnnCost
from policy.baselines.knn_performance import KnnPerformance
from policy.baselines.mix import Mix
from policy.baselines.round_robin import RoundRobin
from policy.baselines.threshold import Threshold
from policy.baselines.uniform import Uniform
from policy.pareto import Pareto
from policy.port import Port
from policy.stageroute import StageRoute
from policy.terms import Policy, PolicyError, Settings

POLICIES: dict[str, Callable[[Settings], Policy]] = {
    "pareto": Pareto,
    "port": Port,
    "stageroute": lambda settings: StageRoute(settings, make_policy),
    "batch-split": BatchSplit,
    "cheapest": Cheapest,
    "fixed": Fixed,
    "greedy": Greedy,
    "knn-cost": KnnCost,
    "knn-performance": KnnPerformance,
    "mix": Mix,
    "round-robin": RoundRobin,
    "threshold": Threshold,
    "random": Uniform,
}


class UnknownPolicyError(PolicyError):
    """A policy is named that does not exist."""

    def __init__(self, policy: str) -> None:
        super().__init__(f"unknown policy {policy!r}; there are {', '.join(sorted(POLICIES))}")
        self.policy = policy


def make_policy(settings: Settings) -> Policy:
    """Return a new policy as the settings say.

    Raises
    ------
    UnknownPolicyError
        If there is no policy of that name.
    ValueError
        If it does not know an option or its value is out of range.
    """
    make = POLICIES.get(settings.policy)
    if make is None:
        raise UnknownPolicyError(settings.policy)
    return make(settings)
