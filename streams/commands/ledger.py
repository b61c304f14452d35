"""``tollway sink``, ``migrate`` and ``audit``: the Postgres ledger."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Annotated

import psycopg
import typer
from rich.console import Console
from rich.table import Table
from sqlalchemy import make_url

from policy.money import format_usd
from streams.collector import relax_collector
from streams.commands.common import fail, set_up_logging
from streams.config import Config, ConfigError
from streams.explain.wording import safe
from streams.ledger.audit import AUDITS, Answer, Value, run_audit
from streams.ledger.database import reason_of
from streams.ledger.errors import LedgerError
from streams.ledger.heads import load_key
from streams.ledger.roles import grant_sink
from streams.ledger.verify import Report, verify

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Name = Annotated[str | None, typer.Argument(help="An audit, or verify; left out: a list of them.")]
Arm = Annotated[str | None, typer.Option(help="The arm to compare with, for savings.")]
Budget = Annotated[str | None, typer.Option(help="Only the rows of this budget.")]

HEADS_KEY = "heads.key"
_ELSEWHERE = {
    "dead-letters": " that the sink could not book; what workers refused is in "
    "`tollway tail dead-letters --from-start`"
}
"""What to add where an audit finds nothing, and another command may."""
_VERIFY_HELP = "read the topics again and compare all that follows from them with the ledger"


def register(app: typer.Typer) -> None:
    """Add ``sink``, ``migrate`` and ``audit``."""

    @app.command()
    def sink(
        ctx: typer.Context,
        accept_gaps: Annotated[
            bool,
            typer.Option(help="Go on where records were deleted unread, and count them as holes."),
        ] = False,
    ) -> None:
        """Write decisions and outcomes into the ledger until stopped; several may run."""
        config: Config = ctx.obj
        set_up_logging(config, "aiokafka", "alembic")
        relax_collector()
        with _errors_told(config):
            asyncio.run(_run_until_signal(config, accept_gaps=accept_gaps))

    @app.command()
    def migrate(
        ctx: typer.Context,
        revision: Annotated[str, typer.Option(help="The revision to go up to.")] = "head",
        sink_role: Annotated[
            str | None, typer.Option(help="A database role that may book afterwards.")
        ] = None,
    ) -> None:
        """Create or update the ledger's tables; safe to repeat."""
        from streams.ledger import migrate as migrations

        config: Config = ctx.obj
        with _errors_told(config):
            url = _database_url(config)
            migrations.upgrade(url, revision)
            if sink_role is not None:
                grant_sink(url, sink_role)
            typer.echo(f"ledger: revision {migrations.current_revision(url)}")

    @app.command()
    def audit(
        ctx: typer.Context,
        name: Name = None,
        as_json: Json = False,
        arm: Arm = None,
        budget: Budget = None,
    ) -> None:
        """Ask the ledger a question.

        The exit code is 1 if the answer breaks a promise, and 2 if there is none, as when the
        ledger does not know the budget.
        """
        if name is None:
            _print_audits(as_json=as_json)
            return
        if name not in (*AUDITS, "verify"):
            fail(f"no audit {safe(name)!r}; there are {', '.join((*AUDITS, 'verify'))}")
        if name == "savings" and arm is None:
            fail("audit savings needs --arm, the arm that the same tokens would have gone to")
        config: Config = ctx.obj
        with _errors_told(config):
            if name == "verify":
                if arm is not None or budget is not None:
                    fail("verify is of the whole ledger: neither --arm nor --budget")
                ok = _verify(config, as_json=as_json)
            else:
                answer = run_audit(_database_url(config), name, arm=arm, budget=budget)
                _print_answer(answer, as_json=as_json)
                ok = answer.wrong == 0
        raise typer.Exit(0 if ok else 1)


async def _run_until_signal(config: Config, *, accept_gaps: bool) -> None:
    from streams.ledger.sink import run_sink

    kafka, database_url = config.endpoints()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    counts = await run_sink(
        kafka,
        database_url,
        stop=stop,
        group=f"{config.app_id}-ledger",
        session_timeout_s=config.session_timeout_s,
        heads_key=_heads_key(config),
        accept_gaps=accept_gaps,
    )
    logging.getLogger(__name__).info("stopped: %s", asdict(counts))


def _heads_key(config: Config) -> bytes:
    """Return the key that signs heads; only one in the home folder is made where it is missing."""
    if config.heads_key is not None:
        return load_key(config.heads_key)
    return load_key(config.home / HEADS_KEY, create=True)


def _known_key(config: Config) -> bytes | None:
    """Return the key that heads are checked with; None if this machine has none."""
    path = config.heads_key or config.home / HEADS_KEY
    return load_key(path) if config.heads_key is not None or path.exists() else None


def _database_url(config: Config) -> str:
    return config.database_url or config.endpoints()[1]


@contextmanager
def _errors_told(config: Config) -> Iterator[None]:
    try:
        yield
    except (LedgerError, ConfigError) as error:
        typer.echo(f"tollway: {error}", err=True)
        raise typer.Exit(2) from None
    except psycopg.errors.UndefinedObject as error:
        typer.echo(f"tollway: {error.diag.message_primary}", err=True)
        raise typer.Exit(2) from None
    except psycopg.errors.UndefinedTable:
        typer.echo("tollway: the ledger has no tables; run `tollway migrate`", err=True)
        raise typer.Exit(2) from None
    except psycopg.OperationalError as error:
        url = make_url(_database_url(config))
        place = f"{url.host or 'localhost'}:{url.port or 5432}/{url.database or ''}"
        fail(f"the database at {place} cannot be reached: {reason_of(error)}")


def _print_audits(*, as_json: bool) -> None:
    helps = {name: audit.help for name, audit in AUDITS.items()} | {"verify": _VERIFY_HELP}
    if as_json:
        typer.echo(json.dumps(helps))
        return
    width = max(map(len, helps))
    for name, text in helps.items():
        typer.echo(f"{name:{width}}  {text}")


def _print_answer(answer: Answer, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(answer.as_dict()))
        return
    console = Console()
    if not console.is_terminal:
        console.width = 240
    if not answer.rows:
        console.print(f"{answer.name}: nothing{_ELSEWHERE.get(answer.name, '')}", soft_wrap=True)
        return
    table = Table(title=answer.name)
    for column in answer.columns:
        is_amount = column.endswith("_nanousd")
        table.add_column(column.removesuffix("_nanousd"), justify="right" if is_amount else "left")
    for row in answer.rows:
        table.add_row(*(_cell(*pair) for pair in zip(answer.columns, row, strict=True)))
    console.print(table)
    if answer.wrong:
        console.print(f"{answer.wrong} rows break a promise of the ledger", style="bold red")


def _cell(column: str, value: Value) -> str:
    if value is None:
        return ""
    if column.endswith("_nanousd") and isinstance(value, int):
        return format_usd(value) if value else "0"
    if column.endswith("_share") and isinstance(value, int | float):
        return f"{value:.2%}"
    return str(value)


def _verify(config: Config, *, as_json: bool) -> bool:
    kafka, database_url = config.endpoints()
    report = asyncio.run(verify(kafka, database_url, heads_key=_known_key(config)))
    if as_json:
        typer.echo(json.dumps(report.as_dict()))
    else:
        _print_report(report)
    return report.ok


def _print_report(report: Report) -> None:
    typer.echo(
        f"{report.decisions} decisions and {report.outcomes} outcomes in {report.partitions} "
        f"partitions: {report.requests} requests, {report.transfers} transfers, "
        f"{format_usd(report.spent_nanousd)} spent, {format_usd(report.overrun_nanousd)} overrun"
    )
    if report.beyond_retention:
        typer.echo(f"{report.beyond_retention} requests are older than the topics and not compared")
    typer.echo(
        f"{report.links} links of the chain, {report.heads} published heads; "
        f"{report.links_after_head} links are newer than the last head of their partition"
    )
    for finding in report.findings:
        typer.echo(f"  {finding}")
    typer.echo("the ledger is what the topics say" if report.ok else f"{report.mismatches} differ")
