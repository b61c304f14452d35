"""How good runs were: reward, cost against the ceiling, shares, regret, and speed of adapting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from policy.pacer import BURST_REQUESTS
from policy.terms import Floats
from streams.replay.setup import Setup, Trace
from streams.replay.world import Scenario, World

TRAIL = 50
"""Steps over which a share is taken when it is asked how soon it changed."""
ADOPTED = 0.1
"""Share from which on an arm counts as adopted."""
SETTLED = 150
"""Steps of a phase after which a price cut should have had its effect."""


def summarise(
    worlds: Sequence[World],
    traces: Sequence[Trace],
    known: Sequence[Mapping[str, Trace]],
    *,
    setup: Setup,
    scenario: Scenario,
) -> dict[str, Any]:
    """Return the summary of one policy's runs, one for each seed.

    Parameters
    ----------
    worlds, traces, known : sequences of equal length
        The streams, what the policy did, and the references.
    """
    rewards = np.array([trace.reward.mean() for trace in traces])
    goals = {
        name: np.array([traces[name].reward.mean() for traces in known])
        for name in ("oracle_in_budget", "best_mix")
    }
    models = worlds[0].recorded.models
    steps = len(traces[0].arm)
    summary: dict[str, Any] = {
        "reward": float(rewards.mean()),
        "reward_sd": float(rewards.std(ddof=1)) if len(rewards) > 1 else 0.0,
        "cost_usd": float(np.mean([t.cost_nanousd.mean() for t in traces])) / 1e9,
        "cost_over_ceiling": _over(traces, slice(0, steps), setup),
        "shares": _shares(traces, models, slice(0, steps)),
        "rejected": float(np.mean([(t.arm < 0).mean() for t in traces])),
        "regret": float((goals["oracle_in_budget"] - rewards).mean() * steps),
        "regret_to_mix": float((goals["best_mix"] - rewards).mean() * steps),
    }
    summary["phases"] = [
        {
            "reward": float(np.mean([t.reward[phase].mean() for t in traces])),
            "cost_over_ceiling": _over(traces, phase, setup),
            "shares": _shares(traces, models, phase),
        }
        for phase in worlds[0].phases
    ]
    if worlds[0].phases:
        summary |= _adapting(worlds, traces, scenario)
    return summary


def _over(traces: Sequence[Trace], phase: slice, setup: Setup) -> dict[str, float] | None:
    """Return cost over the ceiling: mean, worst seed, worst moment after the stated burst.

    The moment compares what was spent since the phase began with ``ceiling * (requests + burst)``.
    For a budget it is its fullest window, and the rest the amount of all windows.
    """
    ceiling = setup.ceiling_nanousd
    if ceiling is None:
        return _over_budget(traces, setup) if phase == slice(0, len(traces[0].arm)) else None
    ends, moments = [], []
    for trace in traces:
        spent = np.cumsum(trace.cost_nanousd[phase])
        requests = np.arange(1, len(spent) + 1)
        ends.append(spent[-1] / (ceiling * len(spent)))
        moments.append(float((spent / (ceiling * (requests + BURST_REQUESTS))).max()))
    return {
        "mean": float(np.mean(ends)),
        "worst_seed": float(np.max(ends)),
        "worst_moment": max(moments),
        "burst_requests": BURST_REQUESTS,
    }


def _over_budget(traces: Sequence[Trace], setup: Setup) -> dict[str, float] | None:
    if setup.budget_nanousd is None:
        return None
    windows = setup.windows(len(traces[0].arm))
    spent = [np.bincount(windows, trace.cost_nanousd) / setup.budget_nanousd for trace in traces]
    return {
        "mean": float(np.mean([used.mean() for used in spent])),
        "worst_seed": float(max(used.mean() for used in spent)),
        "worst_moment": float(max(used.max() for used in spent)),
        "burst_requests": 0.0,
    }


def _shares(traces: Sequence[Trace], models: tuple[str, ...], phase: slice) -> dict[str, float]:
    return {
        name: float(np.mean([(t.arm[phase] == column).mean() for t in traces]))
        for column, name in enumerate(models)
    }


def _adapting(
    worlds: Sequence[World], traces: Sequence[Trace], scenario: Scenario
) -> dict[str, Any]:
    """Return how soon the policy met what happened in the second phase; None where it never did."""
    before, changed = worlds[0].phases[:2]
    if scenario.kind == "regression":
        steps = []
        for world, trace in zip(worlds, traces, strict=True):
            own = trace.arm == world.subject
            half = own[before].mean() / 2.0
            steps.append(_first(_trailing(own, changed) <= half))
        return {"steps_until_half": steps}
    if scenario.kind == "onboarding":
        steps = []
        for world, trace in zip(worlds, traces, strict=True):
            chosen = (trace.arm == world.subject) & ~trace.explored
            steps.append(_first(_trailing(chosen, changed) >= ADOPTED))
        return {"steps_until_adopted": steps}
    settled = slice(changed.start + SETTLED, changed.stop)
    gains, possible = [], []
    for world, trace in zip(worlds, traces, strict=True):
        level = trace.reward[before].mean()
        fits = world.reward[settled].mean(axis=0)
        gains.append(trace.reward[settled].mean() - level)
        possible.append(fits[world.subject] - level)
    gain, most = float(np.mean(gains)), float(np.mean(possible))
    return {
        "gain_after_settling": gain,
        "gain_of_subject_alone": most,
        "gain_share": gain / most if most > 0 else None,
    }


def _trailing(mark: Any, phase: slice) -> Floats:
    """Return the mean of the last ``TRAIL`` marks at each step of a phase."""
    total = np.concatenate([[0.0], np.cumsum(mark.astype(np.float64))])
    ends = np.arange(phase.start + 1, phase.stop + 1)
    starts = np.maximum(ends - TRAIL, 0)
    result: Floats = (total[ends] - total[starts]) / (ends - starts)
    return result


def _first(hit: Any) -> int | None:
    found = np.flatnonzero(hit)
    return int(found[0]) + 1 if len(found) else None
