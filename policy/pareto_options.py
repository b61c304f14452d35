"""The options of ``pareto`` but for those of :mod:`policy.extras`, checked."""

from __future__ import annotations

from dataclasses import dataclass, fields

from policy.extras import OPTIONS as EXTRA_OPTIONS
from policy.terms import Settings


@dataclass(frozen=True, kw_only=True)
class ParetoOptions:
    """The options.

    Parameters
    ----------
    algorithm : {"ucb", "thompson"}
    alpha : float
        Posterior standard deviations added to the reward (``ucb``), or by which the posterior is
        scaled before a draw (``thompson``).
    epsilon : float
        Share of requests that go to an arm drawn evenly.
    force : float
        Share of requests offered to arms that had fewer than ``Arm.explore`` pulls; taken only
        where even the best possible reward would be worth the arm's price.
    probe : float
        Share of requests offered, in the same way, to each arm whose reward was seen to drop.
    forgetting : float
        Factor per observation of an arm, and per decision of a late outcome's age.
    signal : float
        Share of the reward's variance that features are expected to explain.
    """

    algorithm: str = "ucb"
    alpha: float = 0.2
    epsilon: float = 0.0
    force: float = 0.5
    probe: float = 0.04
    forgetting: float = 0.9995
    signal: float = 0.1

    @property
    def thompson(self) -> bool:
        """Whether the posterior is drawn from, instead of adding to the mean."""
        return self.algorithm == "thompson"


def options_of(settings: Settings) -> ParetoOptions:
    """Return the options in these settings.

    Raises
    ------
    ValueError
        If one is unknown or out of range.
    """
    names = {field.name for field in fields(ParetoOptions)}
    if unknown := settings.options.keys() - names - EXTRA_OPTIONS:
        raise ValueError(f"pareto has no option {min(unknown)!r}")
    given = {name: value for name, value in settings.options.items() if name in names}
    algorithm = str(given.pop("algorithm", ParetoOptions.algorithm))
    if algorithm not in ("ucb", "thompson"):
        raise ValueError(f"algorithm must be ucb or thompson, got {algorithm!r}")
    numbers = {name: float(value) for name, value in given.items()}
    options = ParetoOptions(algorithm=algorithm, **numbers)
    for name in ("epsilon", "force", "probe", "forgetting", "signal"):
        if not 0.0 <= getattr(options, name) <= 1.0:
            raise ValueError(f"{name} must be in [0, 1], got {getattr(options, name)}")
    if options.forgetting == 0.0 or options.signal == 0.0:
        raise ValueError("forgetting and signal must be above 0")
    if options.epsilon + options.force > 1.0:
        raise ValueError("epsilon and force together must be at most 1")
    return options
