"""A picture of what ``tollway bench pipeline`` measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

LABELS = {
    "raw_echo": "aiokafka, echo",
    "confluent_echo": "confluent-kafka, echo",
    "stock_faust": "stock Faust, echo",
    "decisions": "Tollway, decisions",
    "settled": "Tollway, decisions and settlements",
}
_SIZE_INCHES = (8.0, 3.0)


def draw(result: dict[str, Any], path: Path) -> None:
    """Write a picture of the rates, medians with the spread of the rounds, in the file's format."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    names = sorted(result["per_s"], key=lambda name: result["per_s"][name]["median"])
    rates = [result["per_s"][name] for name in names]
    medians = [rate["median"] for rate in rates]
    below = [rate["median"] - rate["min"] for rate in rates]
    above = [rate["max"] - rate["median"] for rate in rates]
    colours = ["tab:blue" if name in ("decisions", "settled") else "0.7" for name in names]
    bars = axes.barh([LABELS[name] for name in names], medians, color=colours)
    axes.errorbar(medians, range(len(names)), xerr=[below, above], fmt="none", ecolor="0.3")
    axes.bar_label(bars, labels=[f" {median:,.0f}" for median in medians])
    axes.set_xscale("log")
    axes.set_xlim(right=4 * max(medians))
    shape = result["shape"]
    axes.set_xlabel(
        f"records per second; {shape['arms']} arms, {shape['features']} features, "
        f"{shape['budgets']:,} budgets, one worker"
    )
    figure.savefig(path)
