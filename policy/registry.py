"""The policies by name; a new one is a file and a line here."""

from __future__ import annotations

from collections.abc import Callable

from policy.pareto import Pareto
from policy.terms import Policy, PolicyError, Settings

POLICIES: dict[str, Callable[[Settings], Policy]] = {
    "pareto": Pareto,
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
