"""``tollway replay``: any policy over recorded data, without Kafka."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import numpy as np
import typer
from rich.console import Console
from rich.progress import Progress, TimeRemainingColumn
from rich.table import Table

from policy.money import NANO_PER_USD, parse_usd
from policy.registry import POLICIES, UnknownPolicyError, make_policy
from policy.terms import PolicyError, Settings
from streams.commands.common import foreign_output
from streams.replay.data import DataError, Recorded, read
from streams.replay.job import FIRST_SEED, Job, Result
from streams.replay.regret import replay_lengths
from streams.replay.setup import Setup
from streams.replay.show import growth_table, phase_table, plot, table
from streams.replay.world import Kind, Scenario

_TOLD_THE_CEILING = {"batch-split", "fixed", "mix", "stageroute"}
"""Policies that have an option ``ceiling`` besides the pacer's."""
_TOLD_THE_HORIZON = {"port", "stageroute"}
_MISSING = {
    "matplotlib": "--plot needs the extra plot (matplotlib)",
    "pareto_bandit": "--published needs the package paretobandit: uv run --with paretobandit …",
}


def register(app: typer.Typer) -> None:
    """Add ``replay``."""

    @app.command(name="replay")
    def replay_command(
        data: Annotated[Path, typer.Argument(help="Recorded data, .npz.")],
        policy: Annotated[list[str] | None, typer.Option(help="A policy, or all.")] = None,
        set_: Annotated[
            list[str] | None, typer.Option("--set", help="An option: k=v, or policy:k=v.")
        ] = None,
        features: Annotated[str | None, typer.Option(help="Array of features to use.")] = None,
        segments: Annotated[
            str | None, typer.Option(help="Array that says where requests are from, as features.")
        ] = None,
        prior: Annotated[Path | None, typer.Option(help="Learn all of this file first.")] = None,
        prior_share: Annotated[
            float, typer.Option(min=0.0, max=0.95, help="Learn the first share of DATA first.")
        ] = 0.0,
        shuffle: Annotated[
            int | None, typer.Option(min=0, help="Put DATA in the order of this seed first.")
        ] = None,
        ceiling: Annotated[str | None, typer.Option(help="Mean dollars per request.")] = None,
        budget: Annotated[str | None, typer.Option(help="Dollars per window.")] = None,
        window: Annotated[str, typer.Option(help="Window; a request comes each second.")] = "total",
        in_flight: Annotated[int, typer.Option(min=0, help="Decisions until an outcome.")] = 0,
        feedback_share: Annotated[
            float, typer.Option(min=0.0, max=1.0, help="Share of outcomes with a reward.")
        ] = 1.0,
        seeds: Annotated[int, typer.Option(min=1, max=1_000, help="Arrival orders.")] = 5,
        requests: Annotated[
            int | None, typer.Option(min=3, help="Draw so many, with replacement.")
        ] = None,
        regret_over: Annotated[
            str | None,
            typer.Option(help="Replay so many requests, and so many: T,T,… and fit the regret."),
        ] = None,
        scenario: Annotated[str, typer.Option(help=", ".join(get_args(Kind)))] = "stationary",
        arm: Annotated[str | None, typer.Option(help="Arm of the scenario.")] = None,
        price_factor: Annotated[
            float | None, typer.Option(min=1e-6, help="Scenario's price over the recorded.")
        ] = None,
        level: Annotated[
            float | None, typer.Option(min=0.0, max=1.0, help="Scenario's reward.")
        ] = None,
        controller: Annotated[str, typer.Option(help="Of the pacer: curve or pid.")] = "curve",
        arm_budgets: Annotated[
            str | None, typer.Option(help="weighted, cost, uniform or extreme.")
        ] = None,
        total: Annotated[
            str, typer.Option(help="Of all arms' budgets: cheapest, or dollars.")
        ] = "cheapest",
        published: Annotated[
            bool, typer.Option("--published", help="Run the package paretobandit beside.")
        ] = False,
        plot_file: Annotated[Path | None, typer.Option("--plot", help="Picture to write.")] = None,
        as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    ) -> None:
        """Replay recorded data through the worker's own core and say how good it was."""
        try:
            stream, learned = _data(data, prior, prior_share, features, shuffle, segments)
            if arm_budgets is not None:
                numbers = [FIRST_SEED + number for number in range(seeds)]
                from streams.replay.arm_budgets import compare_arm_budgets

                with foreign_output():
                    compared = compare_arm_budgets(
                        stream, learned, split=arm_budgets, total=total, seeds=numbers
                    )
                _print_arm_budgets(compared, as_json=as_json)
                return
            ceiling_nanousd = None if ceiling is None else parse_usd(ceiling)
            setup = Setup(
                settings=Settings(),
                ceiling_nanousd=ceiling_nanousd,
                budget_nanousd=None if budget is None else parse_usd(budget),
                window=window,
                in_flight=in_flight,
                feedback_share=feedback_share,
                controller=_controller(controller),
            )

            def job(length: int | None) -> Job:
                policies = _policies(
                    policy or ["pareto"],
                    set_ or [],
                    ceiling_nanousd=ceiling_nanousd,
                    steps=length or len(stream),
                    dimensions=stream.dimensions,
                )
                return Job(
                    stream=stream,
                    prior=learned,
                    policies=policies,
                    setup=setup,
                    scenario=Scenario(
                        kind=_kind(scenario), arm=arm, price_factor=price_factor, level=level
                    ),
                    seeds=seeds,
                    requests=length,
                    published=(
                        _data(data, None, prior_share, "features", shuffle, None)[0]
                        if published
                        else None
                    ),
                    capacity=_capacity(policies),
                )

            lengths = _lengths(regret_over) if regret_over is not None else [requests]
            result, growth = _with_progress([job(length) for length in lengths])
            if plot_file is not None:
                plot(plot_file, result, ceiling_nanousd=ceiling_nanousd)
        except ImportError as exc:
            typer.echo(f"tollway replay: {_MISSING.get(exc.name or '', exc)}", err=True)
            raise typer.Exit(2) from None
        except (DataError, PolicyError, ValueError) as exc:
            typer.echo(f"tollway replay: {exc}", err=True)
            raise typer.Exit(2) from None
        _print(result, growth if regret_over is not None else {}, as_json=as_json)


def _data(
    data: Path,
    prior: Path | None,
    prior_share: float,
    features: str | None,
    shuffle: int | None,
    segments: str | None,
) -> tuple[Recorded, Recorded | None]:
    stream = read(data, features=features, segments=segments)
    if shuffle is not None:
        # A file that is sorted by task would be learned on one task and replayed on another.
        stream = stream.rows(np.random.default_rng(shuffle).permutation(len(stream)))
    if prior is not None and prior_share > 0.0:
        raise DataError("give --prior or --prior-share, not both")
    if prior is not None:
        return stream, read(prior, features=features, segments=segments)
    if prior_share == 0.0:
        return stream, None
    first = int(len(stream) * prior_share)
    return stream.rows(slice(first, None)), stream.rows(slice(0, first))


def _policies(
    names: list[str],
    options: list[str],
    *,
    ceiling_nanousd: int | None,
    steps: int,
    dimensions: int,
) -> dict[str, Settings]:
    """Return the settings of each policy; each is made once, so that errors come at the start."""
    chosen = list(POLICIES) if names == ["all"] else names
    given: dict[str, dict[str, float | int | str | bool]] = {name: {} for name in chosen}
    for name in chosen:
        if name not in POLICIES:
            raise UnknownPolicyError(name)
        if ceiling_nanousd is not None and name in _TOLD_THE_CEILING:
            given[name]["ceiling"] = ceiling_nanousd / NANO_PER_USD
        if name in _TOLD_THE_HORIZON:
            given[name]["horizon"] = steps
    for option in options:
        key, equals, text = option.partition("=")
        if not equals:
            raise ValueError(f"an option is k=v, not {option!r}")
        owner, colon, own_key = key.partition(":")
        if colon and owner not in given:
            raise ValueError(f"{option!r} is for a policy that is not replayed")
        for name in [owner] if colon else chosen:
            given[name][own_key if colon else key] = _value(text)
    settings = {
        name: Settings(policy=name, dimensions=dimensions, options=values)
        for name, values in given.items()
    }
    for value in settings.values():
        make_policy(value)
    return settings


def _value(text: str) -> float | int | str | bool:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _kind(text: str) -> Kind:
    for kind in get_args(Kind):
        if text == kind:
            return kind  # type: ignore[no-any-return]
    raise ValueError(f"a scenario is one of {', '.join(get_args(Kind))}, not {text!r}")


def _controller(text: str) -> str:
    if text not in ("curve", "pid"):
        raise ValueError(f"a controller is curve or pid, not {text!r}")
    return text


def _lengths(text: str) -> list[int]:
    found = [int(part) for part in text.split(",") if part.strip().isdigit()]
    if len(found) != text.count(",") + 1 or min(found) < 3 or sorted(set(found)) != found:
        raise ValueError(f"--regret-over takes ascending numbers from 3 on, T,T,…, not {text!r}")
    return found


def _capacity(policies: Mapping[str, Settings]) -> float:
    """Return the share that every replayed policy may give an arm."""
    capacities = {
        float(settings.options.get("capacity", 0.4)) if name == "stageroute" else 1.0
        for name, settings in policies.items()
    }
    return max(capacities)


def _with_progress(jobs: Sequence[Job]) -> tuple[Result, dict[str, dict[str, Any]]]:
    """Replay with a bar on a terminal; nothing else is written there."""
    columns = [*Progress.get_default_columns()[:-1], TimeRemainingColumn()]
    console = Console(stderr=True)
    with (
        foreign_output(),
        Progress(
            *columns, console=console, transient=True, disable=not console.is_terminal
        ) as progress,
    ):
        task = progress.add_task("replay", total=sum(job.steps() for job in jobs))
        return replay_lengths(jobs, lambda _: progress.advance(task))


def _print(result: Result, growth: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        more = {"regret_over": growth} if growth else {}
        typer.echo(json.dumps(result.as_json() | more))
        return
    console = _console()
    console.print(table(result.as_json()))
    if result.world.phases:
        console.print(phase_table(result.as_json()))
    if growth:
        console.print(growth_table(growth))


def _print_arm_budgets(compared: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(compared))
        return
    shown = Table(box=None, pad_edge=False)
    columns = ("reward", "cost_usd", "served", "of_estimated", "of_true")
    for name in ("", *columns):
        shown.add_column(name, justify="left" if not name else "right")
    for name, values in {**compared["policies"], **compared["references"]}.items():
        shown.add_row(name, *(f"{values[column]:.4f}" for column in columns))
    _console().print(shown)


def _console() -> Console:
    """Return the standard output, wide enough for a table if it is no terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=160)
