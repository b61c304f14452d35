"""Budgets per arm instead of a ceiling: PORT, its rivals and its own earlier forms compared."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict
from typing import Any, cast, get_args

import numpy as np

from policy import recorded as history_data
from policy.arm_budgets import evaluate_arm_budgets, prepare
from policy.money import NANO_PER_USD, parse_usd
from policy.recorded import Split, split_budget
from streams.replay.data import DataError, Recorded


def compare_arm_budgets(
    stream: Recorded, prior: Recorded | None, *, split: str, total: str, seeds: list[int]
) -> dict[str, Any]:
    """Return, by name, the means over seeds of what ``policy.arm_budgets.Served`` holds.

    References are those that are given the whole budget unsplit.

    Parameters
    ----------
    stream, prior : Recorded
        The prior is the history from which the outcomes of the stream are estimated.
    split : str
        How the total is divided among the arms.
    total : str
        Dollars, or ``cheapest``: what the cheapest arm would cost for the whole stream.
    seeds : list of int
        Of the arrival orders.

    Raises
    ------
    DataError
        If there is no history, or it has other arms, or the split is unknown.
    """
    if split not in get_args(Split):
        raise DataError(f"arm budgets are split by {', '.join(get_args(Split))}, not {split!r}")
    if prior is None or prior.models != stream.models:
        raise DataError("arm budgets need --prior or --prior-share with the same arms")
    history = _known(prior)
    whole = _known(stream)
    least = float(whole.cost_usd.sum(axis=0).min())
    total_usd = least if total == "cheapest" else parse_usd(total) / NANO_PER_USD
    budget_usd = split_budget(
        total_usd,
        history.reward.mean(axis=0),
        history.cost_usd.mean(axis=0),
        split=cast(Split, split),
    )
    sums: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for seed in seeds:
        order = np.random.default_rng(seed).permutation(len(whole))
        shuffled = history_data.Recorded(
            features=whole.features[order],
            reward=whole.reward[order],
            cost_usd=whole.cost_usd[order],
        )
        case = prepare(history, shuffled, budget_usd, seed=seed)
        for name, served in evaluate_arm_budgets(case).items():
            for key, value in asdict(served).items():
                sums[name][key].append(float(value))
    means = {
        name: {key: float(np.mean(values)) for key, values in columns.items()}
        for name, columns in sums.items()
    }
    unsplit = {name: means.pop(name) for name in ("cheapest", "pooled")}
    return {"total_usd": total_usd, "split": split, "policies": means, "references": unsplit}


def _known(data: Recorded) -> history_data.Recorded:
    return history_data.Recorded(
        features=data.features[:, :-1].astype(np.float64),
        reward=data.reward,
        cost_usd=data.cost_nanousd() / NANO_PER_USD,
    )
