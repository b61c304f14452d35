"""The policies by name; a new one is a file and a line here."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from policy.terms import Policy, PolicyError, Settings

Make = Callable[[Settings], Policy]


def _from(module: str, name: str) -> Make:
    """Return what makes a policy, importing its file when the first one is made.

    Some files bring a solver or an index with them, which a worker of another policy need not
    wait for.
    """

    def make(settings: Settings) -> Policy:
        policy: Policy = getattr(importlib.import_module(module), name)(settings)
        return policy

    return make


def _stageroute(settings: Settings) -> Policy:
    from policy.stageroute import StageRoute

    return StageRoute(settings, make_policy)


POLICIES: dict[str, Make] = {
    "pareto": _from("policy.pareto", "Pareto"),
    "port": _from("policy.port", "Port"),
    "stageroute": _stageroute,
    "batch-split": _from("policy.baselines.batch_split", "BatchSplit"),
    "cheapest": _from("policy.baselines.cheapest", "Cheapest"),
    "fixed": _from("policy.baselines.fixed", "Fixed"),
    "greedy": _from("policy.baselines.greedy", "Greedy"),
    "knn-cost": _from("policy.baselines.knn_cost", "KnnCost"),
    "knn-performance": _from("policy.baselines.knn_performance", "KnnPerformance"),
    "mix": _from("policy.baselines.mix", "Mix"),
    "round-robin": _from("policy.baselines.round_robin", "RoundRobin"),
    "threshold": _from("policy.baselines.threshold", "Threshold"),
    "random": _from("policy.baselines.uniform", "Uniform"),
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
