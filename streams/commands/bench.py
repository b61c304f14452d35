"""The command that measures."""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from streams.commands.common import fail


def register(app: typer.Typer) -> None:
    """Add ``bench``."""

    @app.command()
    def bench(
        name: Annotated[str, typer.Argument(help="pipeline")],
        requests: Annotated[int, typer.Option(min=1_000, help="Requests in a round.")] = 60_000,
        rounds: Annotated[int, typer.Option(min=1, help="Rounds.")] = 3,
        arms: Annotated[int, typer.Option(min=1)] = 10,
        features: Annotated[int, typer.Option(min=1)] = 26,
        budgets: Annotated[int, typer.Option(min=1)] = 64,
        as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    ) -> None:
        """Measure one worker on a broker of its own, beside raw aiokafka and stock Faust."""
        from streams.bench.pipeline import Shape

        if name != "pipeline":
            fail(f"no benchmark {name!r}; there is pipeline")
        shape = Shape(
            arms=arms, features=features, budgets=budgets, requests=requests, rounds=rounds
        )
        result = asyncio.run(_pipeline(shape))
        if as_json:
            typer.echo(json.dumps(result))
        else:
            _show(result)


async def _pipeline(shape: Any) -> dict[str, Any]:
    from streams.bench.pipeline import measure
    from streams.embedded import KafkaServer

    with tempfile.TemporaryDirectory(prefix="tollway-bench-") as folder:
        server = KafkaServer(Path(folder) / "kafka", heap_mb=1_024)
        kafka = await asyncio.to_thread(server.start)
        try:
            return await measure(
                kafka, Path(folder) / "home", shape, say=lambda line: typer.echo(line, err=True)
            )
        finally:
            await asyncio.to_thread(server.stop)


def _show(result: dict[str, Any]) -> None:
    for name, rate in result["per_s"].items():
        ratio = result["ratios"].get(name)
        typer.echo(
            f"{name:12} {rate['median']:>9,}/s  ({rate['min']:,} to {rate['max']:,})"
            + (f"  decisions are {ratio:.3f} of it" if ratio else "")
        )
    typer.echo(f"worker CPU: {result['worker_cpu_s_per_million']} s per million decisions")
