"""``tollway bench``: what is measured, each beside something else in the same run."""

from __future__ import annotations

import asyncio
import json
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from streams.collector import relax_collector
from streams.commands.common import fail

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Rounds = Annotated[int, typer.Option(min=1, help="Rounds; medians and spreads are of them.")]
Arms = Annotated[int, typer.Option(min=1, max=1_000)]
Features = Annotated[int, typer.Option(min=1, max=4_096)]
Budgets = Annotated[int, typer.Option(min=1)]
Levels = Annotated[int, typer.Option(min=2, max=6, help="Length of a budget path.")]


def register(app: typer.Typer) -> None:
    """Add the group ``bench``."""
    group = typer.Typer(name="bench", help="Benchmarks.", no_args_is_help=True)
    app.add_typer(group)
    group.command()(core)
    group.command()(policy)
    group.command()(ledger)
    group.command()(pipeline)
    group.command()(latency)
    group.command()(growth)
    group.command()(recovery)


def core(
    requests: Annotated[int, typer.Option(min=1, help="Requests in a round.")] = 8_192,
    rounds: Rounds = 5,
    arms: Arms = 10,
    features: Features = 26,
    budgets: Budgets = 64,
    levels: Levels = 2,
    chunk: Annotated[int, typer.Option(min=1, help="Requests decided in one call.")] = 512,
    outcomes: Annotated[bool, typer.Option(help="Settle each request's outcome too.")] = True,
    profile: Annotated[
        str, typer.Option(help="Print functions sorted by this instead: tottime or cumtime.")
    ] = "",
    lines: Annotated[int, typer.Option(min=1, help="Functions that --profile prints.")] = 45,
    as_json: AsJson = False,
) -> None:
    """Time the hot path step by step, without Kafka."""
    from streams.bench import core as bench
    from streams.bench.workload import Workload

    relax_collector()
    workload = Workload(arms=arms, features=features, budgets=budgets, levels=levels)
    if profile:
        typer.echo(
            bench.profile(
                workload, requests=requests, chunk=chunk, outcomes=outcomes, sort=profile,
                lines=lines,
            )
        )  # fmt: skip
        return
    result = bench.measure(
        workload, requests=requests, chunk=chunk, rounds=rounds, outcomes=outcomes, say=_say
    )
    _tell(result, bench.show, as_json=as_json)


def policy(
    requests: Annotated[int, typer.Option(min=1, help="Requests in a round.")] = 8_192,
    rounds: Rounds = 5,
    arms: Arms = 3,
    features: Features = 26,
    as_json: AsJson = False,
) -> None:
    """Decide and learn without Kafka, beside the package ``paretobandit`` on the same vectors."""
    from streams.bench import policy as bench

    relax_collector()
    result = bench.measure(requests=requests, rounds=rounds, arms=arms, features=features, say=_say)
    _tell(result, bench.show, as_json=as_json)


def pipeline(
    requests: Annotated[int, typer.Option(min=1_000, help="Requests in a round.")] = 60_000,
    rounds: Rounds = 3,
    arms: Arms = 10,
    features: Features = 26,
    budgets: Budgets = 64,
    levels: Levels = 2,
    sink: Annotated[bool, typer.Option(help="Also what the sink needs for the decisions.")] = True,
    profile: Annotated[
        bool, typer.Option(help="Also say where a worker spends its time, by cProfile.")
    ] = False,
    grid: Annotated[bool, typer.Option(help="Also with other arms, features and budgets.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw the rates into this file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Requests to decisions of one worker, beside programs that only pass records on."""
    from streams.bench import pipeline as bench

    shape = bench.Shape(
        arms=arms, features=features, budgets=budgets, levels=levels, requests=requests,
        rounds=rounds,
    )  # fmt: skip
    found = []
    for one in bench.grid(shape) if grid else [shape]:
        _say(f"{one.arms} arms, {one.features} features, {one.budgets:,} budgets")
        found.append(
            _with_kafka(
                lambda kafka, home, pid, one=one: bench.measure(  # type: ignore[misc]
                    kafka, home, one, say=_say, broker_pid=pid, sink=sink, profile=profile
                )
            )
        )
    result = found[0] | {"grid": found[1:]} if grid else found[0]
    if plot is not None:
        from streams.bench.plot import draw

        draw(result, plot)
    _tell(result, bench.show, as_json=as_json)


def latency(
    rate: Annotated[list[int] | None, typer.Option(min=1, help="Requests/s; repeatable.")] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="At each rate, of each program.")] = 10.0,
    rounds: Rounds = 3,
    arms: Arms = 10,
    features: Features = 26,
    budgets: Budgets = 64,
    partitions: Annotated[int, typer.Option(min=1, max=1_000)] = 8,
    outcomes: Annotated[bool, typer.Option(help="Answer each decision with its outcome.")] = True,
    warm_up: Annotated[int, typer.Option(min=1, help="Requests before any is measured.")] = 20_000,
    as_json: AsJson = False,
) -> None:
    """Request to decision at given rates, beside a raw echo at the same ones."""
    from streams.bench import latency as bench
    from streams.bench.workload import Workload

    workload = Workload(arms=arms, features=features, budgets=budgets, partitions=partitions)
    result = _with_kafka(
        lambda kafka, home, _: bench.measure(
            kafka, home, workload=workload, seconds=seconds, rounds=rounds, say=_say,
            rates=rate or bench.RATES, outcomes=outcomes, warm_up=warm_up,
        )
    )  # fmt: skip
    _tell(result, bench.show, as_json=as_json)


def ledger(
    pairs: Annotated[int, typer.Option(min=100, help="Pairs of each program in a round.")] = 20_000,
    flush: Annotated[int, typer.Option(min=1, help="Pairs in a transaction.")] = 2_500,
    rounds: Rounds = 5,
    rate: Annotated[int, typer.Option(min=0, help="Pairs/s for the lag; 0: none.")] = 10_000,
    seconds: Annotated[float, typer.Option(min=0.5, help="At that rate.")] = 6.0,
    as_json: AsJson = False,
) -> None:
    """Reserve and settle by the sink, beside COPY of the same rows; how far the sink lags."""
    from streams.bench import ledger as bench
    from streams.bench import ledger_lag
    from streams.embedded import PostgresServer

    shape = bench.Shape(pairs=pairs, flush=flush, rounds=rounds)
    with tempfile.TemporaryDirectory(prefix="tollway-bench-") as folder:
        server = PostgresServer(Path(folder) / "postgres")
        server.start()
        try:
            result = bench.measure(server, shape, say=_say)
        finally:
            server.stop()
    if rate:
        load = ledger_lag.Load(rate=rate, seconds=seconds)
        result["lag"] = _with_kafka(
            lambda kafka, home, _: ledger_lag.measure(kafka, home, load, say=_say)
        )
    _tell(result, bench.show, as_json=as_json)


def growth(
    requests: Annotated[int, typer.Option(min=1, help="Of each variation in a round.")] = 4_096,
    rounds: Rounds = 5,
    as_json: AsJson = False,
) -> None:
    """Cost of a decision as budgets, arms, features, partitions and history grow; memory."""
    from streams.bench import growth as bench

    relax_collector()
    result = bench.measure(requests=requests, rounds=rounds, say=_say)
    _tell(result, bench.show, as_json=as_json)


def recovery(
    size: Annotated[
        list[int] | None, typer.Option(min=1, help="Open reservations and budgets; repeatable.")
    ] = None,
    rate: Annotated[int, typer.Option(min=1, help="Requests/s that go on to come.")] = 500,
    session_timeout: Annotated[int, typer.Option(min=1, help="Seconds; of worker and echo.")] = 6,
    rounds: Rounds = 3,
    as_json: AsJson = False,
) -> None:
    """Seconds without decisions after kill -9, beside an echo in a consumer group."""
    from streams.bench import recovery as bench

    found = {
        number: _with_kafka(
            lambda kafka, home, _, size=number: bench.measure(  # type: ignore[misc]
                kafka,
                home,
                size=size,
                rate=rate,
                rounds=rounds,
                session_s=session_timeout,
                say=_say,
            )
        )
        for number in size or bench.SIZES
    }
    result = bench.summarise(found, {"rate": rate, "rounds": rounds, "session_s": session_timeout})
    _tell(result, bench.show, as_json=as_json)


def _with_kafka(measure: Callable[[str, Path, int | None], Any]) -> dict[str, Any]:
    """Run a benchmark on a broker of its own, in a folder that is removed again."""
    from streams.bench.programs import ProgramError
    from streams.embedded import EmbeddedError, KafkaServer

    # New topics have no leader for an instant, which aiokafka warns of and gets over.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)

    async def run() -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="tollway-bench-") as folder:
            server = KafkaServer(Path(folder) / "kafka", heap_mb=1_024)
            kafka = await asyncio.to_thread(server.start)
            try:
                result: dict[str, Any] = await measure(kafka, Path(folder) / "home", server.pid)
                return result
            finally:
                await asyncio.to_thread(server.stop)

    try:
        return asyncio.run(run())
    except (ProgramError, EmbeddedError) as exc:
        fail(str(exc), code=1)


def _tell(result: dict[str, Any], show: Callable[[dict[str, Any]], str], *, as_json: bool) -> None:
    typer.echo(json.dumps(result) if as_json else show(result))


def _say(line: str) -> None:
    typer.echo(line, err=True)
