"""A replay's result for people: a table, and a picture of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from streams.replay.job import Result
from streams.replay.world import World


def table(result: Mapping[str, Any]) -> Table:
    """Return the policies and the references as one table."""
    shown = Table(box=None, pad_edge=False)
    for name in ("", "reward", "sd", "cost/ceiling", "worst seed", "worst moment", "regret"):
        shown.add_column(name, justify="left" if not name else "right")
    shown.add_column("shares")
    for group in ("policies", "references"):
        for name, summary in result[group].items():
            over = summary["cost_over_ceiling"] or {}
            shares = sorted(summary["shares"].items(), key=lambda item: -item[1])[:4]
            shown.add_row(
                name,
                f"{summary['reward']:.4f}",
                f"{summary['reward_sd']:.4f}",
                *(_number(over.get(key)) for key in ("mean", "worst_seed", "worst_moment")),
                f"{summary['regret']:.1f}",
                "  ".join(f"{arm} {share:.0%}" for arm, share in shares if share >= 0.005),
            )
        shown.add_section()
    return shown


def phase_table(result: Mapping[str, Any]) -> Table:
    """Return the phases of every policy, and how soon it adapted."""
    shown = Table(box=None, pad_edge=False)
    for name in ("", "phase", "reward", "cost/ceiling", "shares"):
        shown.add_column(name, justify="left" if name in ("", "shares") else "right")
    for name, summary in {**result["policies"], **result["references"]}.items():
        for number, phase in enumerate(summary["phases"], start=1):
            shares = sorted(phase["shares"].items(), key=lambda item: -item[1])[:4]
            shown.add_row(
                name if number == 1 else "",
                str(number),
                f"{phase['reward']:.4f}",
                _number((phase["cost_over_ceiling"] or {}).get("mean")),
                "  ".join(f"{arm} {share:.0%}" for arm, share in shares if share >= 0.005),
            )
        for key in ("steps_until_half", "steps_until_adopted", "gain_share"):
            if key in summary:
                shown.add_row("", "", "", "", f"{key.replace('_', ' ')}: {summary[key]}")
    return shown


def growth_table(growth: Mapping[str, Any]) -> Table:
    """Return each policy's regret to the best mix by length, and the exponent that fits."""
    shown = Table(box=None, pad_edge=False)
    lengths = next(iter(growth.values()))["requests"]
    for name in ("regret to the best mix", *(f"{length:,}" for length in lengths), "exponent"):
        shown.add_column(name, justify="left" if name.startswith("regret") else "right")
    for name, found in growth.items():
        shown.add_row(
            name,
            *(f"{regret:.1f}" for regret in found["regret_to_mix"]),
            _number(found["exponent"]),
        )
    return shown


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def plot(path: Path, result: Result, *, ceiling_nanousd: int | None) -> None:
    """Draw cost and shares over time, and reward against cost with the envelope of fixed arms.

    Raises
    ------
    ImportError
        If matplotlib, the extra ``plot``, is not installed.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    world, traces = result.world, result.traces
    figure, (over_time, shares, plane) = plt.subplots(1, 3, figsize=(16, 4.6))
    requests = np.arange(1, len(world.order) + 1)
    for name, trace in traces.items():
        over_time.plot(requests, np.cumsum(trace.cost_nanousd) / requests / 1e9, label=name)
    if ceiling_nanousd is not None:
        over_time.axhline(ceiling_nanousd / 1e9, color="black", linestyle=":", label="ceiling")
    over_time.set(title="mean cost so far", xlabel="requests", ylabel="USD", yscale="log")
    over_time.legend(fontsize=7)
    name, trace = next(iter(traces.items()))
    kernel = np.ones(min(100, len(requests))) / min(100, len(requests))
    for column, model in enumerate(world.recorded.models):
        own = (trace.arm == column).astype(np.float64)
        if own.any():
            shares.plot(requests, np.convolve(own, kernel, mode="same"), label=model)
    shares.set(title=f"shares over 100 requests: {name}", xlabel="requests")
    shares.legend(fontsize=7)
    cost, reward = _envelope(world)
    plane.plot(cost, reward, color="grey", marker="o", label="mixes of fixed arms")
    for label, summary in {**result.policies, **result.references}.items():
        plane.scatter(summary["cost_usd"], summary["reward"], s=18)
        plane.annotate(label, (summary["cost_usd"], summary["reward"]), fontsize=7)
    plane.set(title="reward against cost", xlabel="USD per request", xscale="log")
    plane.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _envelope(world: World) -> tuple[list[float], list[float]]:
    """Return the upper hull of the arms' mean cost and reward."""
    points = sorted(
        zip(
            (world.cost_nanousd.mean(axis=0) / 1e9).tolist(),
            world.reward.mean(axis=0).tolist(),
            strict=True,
        )
    )
    hull: list[tuple[float, float]] = []
    for cost, reward in points:
        if hull and reward <= hull[-1][1]:
            continue
        while len(hull) > 1 and _left_of(hull[-2], hull[-1], (cost, reward)):
            hull.pop()
        hull.append((cost, reward))
    return [cost for cost, _ in hull], [reward for _, reward in hull]


def _left_of(
    first: tuple[float, float], second: tuple[float, float], third: tuple[float, float]
) -> bool:
    cross = (second[0] - first[0]) * (third[1] - first[1])
    return cross >= (second[1] - first[1]) * (third[0] - first[0])
