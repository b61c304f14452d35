"""``tollway replay-log``: the decisions of a log, made anew and compared."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from policy.state import Limits
from streams.commands.common import config_of, fail, kafka_of
from streams.commands.talking import Json, errors_told
from streams.encoders import Encoders

if TYPE_CHECKING:
    from streams.replay_log.run import Bound, PartitionReport

SHOWN_MAX = 10
"""Differences of a partition that are shown."""


def register(app: typer.Typer) -> None:
    """Add ``replay-log``."""

    @app.command(name="replay-log")
    def replay_log_command(
        ctx: typer.Context,
        begin: Annotated[
            str | None,
            typer.Option("--from", help="First decision to compare: a time (ISO 8601, UTC without "
                         "a zone) or an offset; the begin of the log without."),
        ] = None,
        end: Annotated[
            str | None, typer.Option("--to", help="Where to end, likewise; the end without.")
        ] = None,
        partition: Annotated[
            list[int] | None, typer.Option(help="Partitions, one an option; all without.")
        ] = None,
        as_json: Json = False,
    ) -> None:  # fmt: skip
        """Rebuild the state from the topics alone, decide anew, and compare byte for byte.

        Exit code 1 if a decision came out otherwise, 2 if none did but some could not be decided
        anew. Only the version of Tollway that decided decides alike, and TOLLWAY_DEFER_MS must be
        what it was for the workers.
        """
        # With it comes all of a worker, which takes long to import.
        from streams.replay_log.run import replay_log

        kafka, config = kafka_of(ctx), config_of(ctx)
        encoders = Encoders(config.encoders)
        replaying = replay_log(
            kafka,
            begin=_bound(begin),
            end=_bound(end),
            partitions=partition,
            limits=Limits(reservation_ttl_ms=config.reservation_ttl_ms, defer_ms=config.defer_ms),
            make_intake=encoders.intake,
            features=encoders.features,
        )
        try:
            with errors_told(kafka):
                report = asyncio.run(replaying)
        except ValueError as exc:
            fail(str(exc))
        if as_json:
            typer.echo(json.dumps(report.as_dict(differences_max=SHOWN_MAX)))
        else:
            for part in report.partitions:
                typer.echo("\n".join(_lines(part)))
        raise typer.Exit(1 if report.differs else 0 if report.complete else 2)


def _bound(text: str | None) -> Bound:
    from streams.replay_log.run import Bound

    if text is None:
        return Bound()
    if text.isdigit():
        return Bound(offset=int(text))
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        fail(f"{text!r} is neither an offset nor a time such as 2026-05-01T12:00:00")
    zoned = time if time.tzinfo is not None else time.replace(tzinfo=UTC)
    return Bound(at_ms=round(zoned.timestamp() * 1_000))


def _lines(part: PartitionReport) -> list[str]:
    different = len(part.differences)
    lines = [
        f"partition {part.partition}: decisions {part.begin}..{part.end}, "
        f"{part.compared} compared, {part.equal} equal, {different} different"
    ]
    lines += [f"  {count} not compared: {reason}" for reason, count in part.unknown.items()]
    for found in part.differences[:SHOWN_MAX]:
        lines.append(f"  offset {found.offset}, request {found.request_id or '?'}: {found.reason}")
        for name, (written, again) in found.fields.items():
            lines.append(f"    {name}: written {written!r}, made anew {again!r}")
    if different > SHOWN_MAX:
        lines.append(f"  and {different - SHOWN_MAX} more")
    if part.stopped:
        lines.append(f"  stopped: {part.stopped}")
    if part.state_sha256:
        decisions, outcomes, _ = part.position
        lines.append(
            f"  state at decision {decisions}, outcome {outcomes}: sha256 {part.state_sha256}"
        )
    return lines
