"""``tollway explain``: a decision in words."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Any

import typer

from streams.commands.common import fail, kafka_of, ledger_of
from streams.commands.talking import Json, errors_told
from streams.explain.report import explain, status
from streams.explain.trace import Trace


def register(app: typer.Typer) -> None:
    """Add ``explain``."""

    @app.command(name="explain")
    def explain_command(
        ctx: typer.Context,
        request_id: Annotated[str, typer.Argument(help="Id of the request.")],
        budget: Annotated[
            str | None,
            typer.Option(help="Its budget, or the root of it: quicker, and needed if several "
                         "roots use the same id."),
        ] = None,
        as_json: Json = False,
    ) -> None:  # fmt: skip
        """Say in words what was asked, decided, reserved, spent and refused, and why.

        The exit code is 1 if there is neither the request nor a decision, whatever else there is.
        """
        # Only this command of the module's needs the ledger's libraries.
        from streams.explain.tracing import SeveralRootsError, trace

        kafka = kafka_of(ctx)
        root = None if budget is None else budget.partition("/")[0]
        try:
            with errors_told(kafka):
                found = asyncio.run(
                    trace(kafka, request_id, root=root, database_url=ledger_of(ctx))
                )
        except SeveralRootsError as exc:
            fail(str(exc))
        if as_json:
            typer.echo(json.dumps(_as_dict(found)))
        else:
            typer.echo(_text(found))
        raise typer.Exit(1 if status(found) in ("unknown", "unasked") else 0)


def _text(found: Trace) -> str:
    head, *sections = explain(found)
    parts = [head.title]
    for section in sections:
        parts += ["", section.title, *(f"  {line}" for line in section.lines)]
    return "\n".join(parts)


def _as_dict(found: Trace) -> dict[str, Any]:
    head, *sections = explain(found)
    words = {section.title: list(section.lines) for section in sections}
    return {"status": status(found), "headline": head.title, "words": words, **found.as_dict()}
