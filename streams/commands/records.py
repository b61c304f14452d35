"""Commands on records: send, outcome, tail, catalog, explain, asyncapi."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Any

import typer

from policy.money import parse_usd
from streams import asyncapi, lines, topics
from streams.client import Client
from streams.commands import catalog, explain, send
from streams.commands.common import fail, kafka_of, ledger_of
from streams.commands.talking import Json, errors_told, need_topics
from streams.explain.wording import safe
from streams.records import BadRecordError, Outcome, decision_id
from streams.sending import check_budget, check_outcome
from streams.tailing import TailReader

Id = Annotated[str, typer.Argument(help="Id of the request.")]
Budget = Annotated[str, typer.Option(help="Its budget, or the budget's root.")]
PromptTokens = Annotated[int | None, typer.Option(help="Tokens of the prompt.")]
CompletionTokens = Annotated[int | None, typer.Option(help="Tokens of the answer.")]
CachedTokens = Annotated[
    int | None, typer.Option(help="Those of the prompt's that came from a cache.")
]
CostUsd = Annotated[
    str | None, typer.Option(help="The provider's bill; it counts before the tokens.")
]
Reward = Annotated[float | None, typer.Option(help="How good the answer was, in [0, 1].")]
Latency = Annotated[int | None, typer.Option(help="How long the call took.")]
Error = Annotated[str | None, typer.Option(help="What went wrong.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    send.register(app)
    _register_outcome(app)
    _register_tail(app)
    catalog.register(app)
    explain.register(app)

    @app.command(name="asyncapi")
    def asyncapi_command() -> None:
        """Print the AsyncAPI 3 document of the topics and their records."""
        typer.echo(asyncapi.text(), nl=False)


def _register_outcome(app: typer.Typer) -> None:
    @app.command()
    def outcome(
        ctx: typer.Context,
        request_id: Id,
        budget: Budget,
        prompt_tokens: PromptTokens = None,
        completion_tokens: CompletionTokens = None,
        cached_tokens: CachedTokens = None,
        cost_usd: CostUsd = None,
        reward: Reward = None,
        latency_ms: Latency = None,
        error: Error = None,
    ) -> None:
        """Report what became of a call: usage or cost settles, reward teaches.

        The exit code is 1 if the request has no decision yet, or was rejected; the outcome is sent
        all the same, and waits a minute for a decision.
        """
        fields: dict[str, Any] = {
            "request_id": request_id,
            "reward": reward,
            "latency_ms": latency_ms,
            "error": error,
        }
        usage = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "cached_tokens": cached_tokens,
        }
        usage = {name: value for name, value in usage.items() if value is not None}
        if usage:
            fields["usage"] = usage
        try:
            if cost_usd is not None:
                fields["cost_nanousd"] = parse_usd(cost_usd)
            given = {name: value for name, value in fields.items() if value is not None}
            record = check_outcome(given)
            check_budget(budget)
        except BadRecordError as exc:
            fail(f"outcome: {exc}")
        except ValueError as exc:
            fail(f"--cost-usd: {exc}")
        kafka = kafka_of(ctx)
        with errors_told(kafka):
            asyncio.run(need_topics(kafka))
            counts = asyncio.run(_report(kafka, budget, record, ledger_of(ctx)))
        raise typer.Exit(0 if counts else 1)


async def _report(kafka: str, budget: str, outcome: Outcome, database_url: str | None) -> bool:
    """Send an outcome and say where it lies; return whether there is a decision for an arm."""
    # Only this command of the module's needs the ledger's libraries.
    from streams.explain.former import find_decisions
    from streams.explain.trace_reader import TraceReader

    async with Client(kafka) as client:
        place = await (await client.report(budget, outcome))
    at = f"{place.topic}/{place.partition}/{place.offset}"
    typer.echo(f"{lines.outcome(outcome)}  sent, {at}")
    root = budget.partition("/")[0]
    identity = decision_id(root, outcome.request_id)
    reader = TraceReader(kafka)
    await reader.start()
    try:
        found = await find_decisions(reader, {identity: root}, database_url=database_url)
    finally:
        await reader.stop()
    if identity not in found:
        typer.echo(
            f"  no decision of {outcome.request_id} for {root} is known yet; the outcome waits a "
            f"minute for one (see `tollway explain {outcome.request_id}`)"
        )
        return False
    decision = found[identity].record
    if decision is not None and decision.arm is None:
        typer.echo(f"  without effect: the request was rejected, {decision.rejected}")
        return False
    return True


def _topic(name: str) -> str:
    topic = lines.NAMES.get(name, name)
    if topic not in lines.NAMES.values():
        raise typer.BadParameter(
            f"{safe(name)!r}; there are {', '.join(lines.NAMES)}, or their full names such as "
            f"{topics.DEAD_LETTERS}"
        )
    return topic


_TOPIC = typer.Argument(
    parser=_topic,
    metavar="TOPIC",
    autocompletion=lambda: list(lines.NAMES),
    help=f"{', '.join(lines.NAMES)}; or the full name, such as {topics.DEAD_LETTERS}.",
)


def _register_tail(app: typer.Typer) -> None:
    @app.command()
    def tail(
        ctx: typer.Context,
        topic: Annotated[str, _TOPIC],
        from_start: Annotated[
            bool, typer.Option("--from-start", help="Begin with the oldest record.")
        ] = False,
        number: Annotated[
            int | None,
            typer.Option("-n", min=1, help="Print the last N records that are there, or the first "
                         "N with --from-start, and end."),
        ] = None,
        as_json: Json = False,
    ) -> None:  # fmt: skip
        """Print the records of a topic as they come, one line each, until Ctrl-C."""
        kafka = kafka_of(ctx)
        with errors_told(kafka), suppress(KeyboardInterrupt):
            asyncio.run(_tail(kafka, topic, number, first=from_start, as_json=as_json))


async def _tail(kafka: str, topic: str, number: int | None, *, first: bool, as_json: bool) -> None:
    def show(records: Sequence[Any]) -> None:
        for record in records:
            typer.echo(json.dumps(lines.as_dict(record)) if as_json else lines.line(record))

    reader = TailReader(kafka)
    await reader.start()
    try:
        if number is not None:
            show(await reader.some(topic, number, first=first))
            return
        positions = await reader.positions([topic], first=first)
        # The client may lose the cancellation that Ctrl-C would be.
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stop.set)
        async for records in reader.follow(positions):
            show(records)
            if stop.is_set():
                return
    finally:
        await reader.stop()
