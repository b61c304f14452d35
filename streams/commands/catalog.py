"""``tollway catalog``: show, apply and retire entries."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from streams import lines
from streams.catalog_file import CatalogFileError, Change, plan, read_file, warnings
from streams.catalog_log import CatalogLog, Listed, read_catalog
from streams.client import Client
from streams.commands.common import fail, kafka_of
from streams.commands.talking import errors_told
from streams.explain.wording import clock, safe
from streams.log import LogReader

_ORDER = ("policy", "arm", "price", "budget")


def register(app: typer.Typer) -> None:
    """Add ``catalog show``, ``catalog apply`` and ``catalog retire``."""
    group = typer.Typer(
        name="catalog", help="Arms, prices, budgets and the policy.", no_args_is_help=True
    )
    app.add_typer(group)

    @group.command()
    def show(
        ctx: typer.Context,
        as_json: Annotated[
            bool, typer.Option("--json", help="Print a list that `catalog apply` takes.")
        ] = False,
    ) -> None:
        """Print the entries that hold now."""
        kafka = kafka_of(ctx)
        with errors_told(kafka):
            log = asyncio.run(_read(kafka))
        if as_json:
            entries = [listed.entry for _, listed in _sorted(log)]
            typer.echo(json.dumps([msgspec.to_builtins(entry) for entry in entries], indent=2))
            return
        for _, listed in _sorted(log):
            typer.echo(f"{lines.entry(listed.entry)}  (since {clock(listed.at_ms)})")
        for warning in warnings([], log):
            typer.echo(f"note: {warning}")
        for offset, error in log.refused.items():
            typer.echo(
                f"note: the record at offset {offset} has no effect: {safe(str(error), 200)}"
            )

    @group.command()
    def apply(
        ctx: typer.Context,
        file: Annotated[Path, typer.Argument(help="Entries, .json or .toml.")],
        dry_run: Annotated[
            bool, typer.Option("--dry-run", help="Say what would change, and change nothing.")
        ] = False,
    ) -> None:
        """Write the entries of a file that differ from what holds; all are checked before any.

        A price without a version gets the next one. Entries that the file does not name stay.
        """
        try:
            fields = read_file(file.read_text(), toml=file.suffix == ".toml")
        except (OSError, UnicodeDecodeError) as exc:
            fail(f"{file}: {exc}")
        except CatalogFileError as exc:
            fail(f"{file}: {exc}")
        kafka = kafka_of(ctx)
        with errors_told(kafka):
            log = asyncio.run(_read(kafka))
            try:
                changes = plan(fields, log)
            except CatalogFileError as exc:
                fail(f"{file}: {exc}; nothing was changed")
            if not dry_run:
                asyncio.run(_declare(kafka, changes))
        for change in changes:
            typer.echo(change.line())
        for warning in warnings(changes, log):
            typer.echo(f"note: {warning}", err=True)
        same = len(fields) - len(changes)
        verb = "would change" if dry_run else "changed"
        typer.echo(f"{len(changes)} {verb}, {same} already so")

    @group.command()
    def retire(
        ctx: typer.Context,
        key: Annotated[str, typer.Argument(help="Such as arm:gpt-4o@openai or budget:acme.")],
    ) -> None:
        """Take an entry out: an arm is no longer chosen, a price or a budget is gone."""
        if key == "policy":
            fail("the policy cannot be retired; apply another one")
        kafka = kafka_of(ctx)
        with errors_told(kafka):
            log = asyncio.run(_read(kafka))
            if key not in log.listed:
                known = ", ".join(name for name, _ in _sorted(log) if name != "policy")
                fail(f"no entry {safe(key)!r}; there are {known or 'none'}")
            asyncio.run(_retire(kafka, key))
        typer.echo(f"- {key}")


def _sorted(log: CatalogLog) -> list[tuple[str, Listed]]:
    return sorted(
        log.listed.items(), key=lambda item: (_ORDER.index(item[0].partition(":")[0]), item[0])
    )


async def _read(kafka: str) -> CatalogLog:
    reader = LogReader(kafka)
    await reader.start()
    try:
        return await read_catalog(reader)
    finally:
        await reader.stop()


async def _declare(kafka: str, changes: Sequence[Change]) -> None:
    async with Client(kafka) as client:
        await client.declare(change.new for change in changes)


async def _retire(kafka: str, key: str) -> None:
    async with Client(kafka) as client:
        await client.retire(key)
