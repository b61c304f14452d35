"""``tollway evaluate``: what another policy would have earned and spent, from logged decisions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from policy.offpolicy import Evaluation, Log, evaluate, target_probabilities
from policy.registry import make_policy
from policy.terms import Floats, PolicyError, Settings
from streams.commands.common import config_of, fail, foreign_output
from streams.decision_log import LogError, read_log
from streams.encoders import EncoderError, Encoders

_WEIGHT_OFF = 0.1
_EFFECTIVE_MIN = 50.0


def register(app: typer.Typer) -> None:
    """Add ``evaluate``."""

    @app.command(name="evaluate")
    def evaluate_command(
        ctx: typer.Context,
        log: Annotated[Path, typer.Argument(help="Decisions and outcomes, .jsonl or .npz.")],
        policy: Annotated[str, typer.Option(help="The policy to be evaluated.")] = "pareto",
        set_: Annotated[list[str] | None, typer.Option("--set", help="An option: k=v.")] = None,
        dual_price: Annotated[
            float | None, typer.Option(min=0.0, help="Reward per dollar, not the logged ones.")
        ] = None,
        frozen: Annotated[
            bool, typer.Option("--frozen", help="Do not let the policy learn from the log.")
        ] = False,
        confidence: Annotated[float, typer.Option(min=0.5, max=0.999)] = 0.95,
        as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    ) -> None:
        """Estimate another policy's reward and cost from logged decisions."""

        # Only for a log with prompts: its library takes seconds to import.
        def encode(version: str, prompts: Sequence[str]) -> Floats:
            return Encoders(config_of(ctx).encoders).of_version(version).encode(prompts)

        options = dict(_option(text) for text in set_ or [])
        try:
            decisions, left_out = read_log(log, encode=encode)
            if dual_price is not None:
                decisions = replace(decisions, dual_price=np.full(len(decisions), dual_price))
            width = decisions.features.shape[1] - 1
            settings = Settings(policy=policy, dimensions=width, options=options)
            made = make_policy(settings)
            with foreign_output():
                target = target_probabilities(decisions, made, learn=not frozen)
            reward, cost = evaluate(decisions, target, confidence=confidence)
        except (LogError, PolicyError, EncoderError, ValueError) as exc:
            fail(str(exc))
        report = _report(decisions, left_out, policy, reward, cost)
        typer.echo(json.dumps(report)) if as_json else _show(report)


def _option(text: str) -> tuple[str, float | int | str | bool]:
    name, found, value = text.partition("=")
    if not (name and found):
        fail(f"--set takes k=v, not {text!r}")
    try:
        parsed = json.loads(value)
    except json.JSONDecodeError:
        return name, value
    return name, parsed if isinstance(parsed, float | int | bool) else value


def _report(
    log: Log, left_out: int, policy: str, reward: Evaluation, cost: Evaluation
) -> dict[str, Any]:
    warnings = []
    if abs(reward.weight_mean - 1.0) > _WEIGHT_OFF:
        warnings.append(
            f"the mean weight is {reward.weight_mean:.2f}, not 1: the log lacks decisions such as "
            "this policy would make, and the estimates leave these out"
        )
    if reward.effective < _EFFECTIVE_MIN:
        warnings.append(f"only {reward.effective:.0f} effective decisions")
    return {
        "policy": policy,
        "decisions": len(log),
        "left_out": left_out,
        "logged": {
            "reward": float(np.nanmean(log.reward)),
            "cost_usd": float(np.nanmean(log.cost_usd)),
        },
        "reward": asdict(reward),
        "cost_usd": asdict(cost),
        "warnings": warnings,
    }


def _show(report: dict[str, Any]) -> None:
    table = Table(title=f"{report['policy']}: {report['decisions']} decisions")
    for heading in ("estimator", "reward", "", "cost, $", ""):
        table.add_column(heading)
    logged = report["logged"]
    table.add_row("as logged", f"{logged['reward']:.4f}", "", f"{logged['cost_usd']:.6f}", "")
    for name, label in (
        ("ips", "IPS"),
        ("snips", "SNIPS"),
        ("doubly_robust", "doubly robust"),
    ):
        reward, cost = report["reward"][name], report["cost_usd"][name]
        table.add_row(
            label,
            f"{reward['mean']:.4f}",
            f"{reward['low']:.4f} to {reward['high']:.4f}",
            f"{cost['mean']:.6f}",
            f"{cost['low']:.6f} to {cost['high']:.6f}",
        )
    console = Console()
    console.print(table)
    console.print(
        f"{report['reward']['effective']:.0f} effective decisions, "
        f"mean weight {report['reward']['weight_mean']:.2f}, {report['left_out']} left out"
    )
    for warning in report["warnings"]:
        console.print(f"warning: {warning}")
