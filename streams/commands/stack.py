"""``tollway up``, ``down`` and ``status``: the embedded servers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated

import typer

from streams.config import Config
from streams.embedded import EmbeddedError, Endpoints, ServerStatus
from streams.embedded import stack as servers
from streams.ledger.database import connection_string

if TYPE_CHECKING:
    from streams.members import Members

Preparation = Callable[[Config, Endpoints], None]
"""Something that `up` does when the servers run; it must be safe to repeat."""

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def create_topics(config: Config, endpoints: Endpoints) -> None:
    """Create the topics on the embedded broker; one of the user's own is left as it is."""
    if config.kafka:
        return
    from streams import topics

    asyncio.run(
        topics.create(
            endpoints.kafka,
            app_id=config.app_id,
            partitions=config.partitions,
            replication=config.replication,
        )
    )


def migrate(config: Config, endpoints: Endpoints) -> None:
    """Bring the embedded database's tables up to date; one of the user's own is left as it is."""
    if config.database_url:
        return
    from streams.ledger.migrate import upgrade

    upgrade(endpoints.database_url)


def register(
    app: typer.Typer, *, after_up: Sequence[Preparation] = (create_topics, migrate)
) -> None:
    """Add ``up``, ``down`` and ``status``; ``after_up`` is run by ``up`` in this order."""

    @app.command()
    def up(ctx: typer.Context, as_json: Json = False) -> None:
        """Start Kafka and Postgres on this machine and prepare them; safe to repeat."""
        before = servers.status(ctx.obj.home)
        config = _own_servers(ctx.obj, before)
        if not as_json and not all(s.running or _own(config, s) for s in before):
            typer.echo("starting; the first time downloads 45 MB", err=True)
        with _errors_told():
            endpoints = servers.up(
                config.home, kafka=config.kafka, database_url=config.database_url
            )
            for preparation in after_up:
                preparation(config, endpoints)
        for line in _moved(before, servers.status(config.home)):
            typer.echo(line, err=True)
        if as_json:
            typer.echo(json.dumps(asdict(endpoints)))
            return
        typer.echo(f"TOLLWAY_KAFKA={endpoints.kafka}")
        # As psql and other programs read it, which know nothing of drivers.
        url = connection_string(endpoints.database_url)
        typer.echo(f"TOLLWAY_DATABASE_URL={url}")

    @app.command()
    def down(
        ctx: typer.Context,
        wipe: Annotated[bool, typer.Option("--wipe", help="Delete the data, too.")] = False,
    ) -> None:
        """Stop the embedded Kafka and Postgres; the data stay."""
        config: Config = ctx.obj
        with _errors_told():
            servers.down(config.home, wipe=wipe)
        typer.echo("stopped, data deleted" if wipe else f"stopped; the data are in {config.home}")

    @app.command()
    def status(ctx: typer.Context, as_json: Json = False) -> None:
        """Say whether the servers run, and who is at work.

        The exit code is 3 if an embedded server that is needed does not run.
        """
        found = servers.status(ctx.obj.home)
        config = _own_servers(ctx.obj, found)
        kafka = config.kafka or (found[0].endpoint if found[0].running else None)
        at_work = None if kafka is None else _members(kafka, config.app_id)
        if as_json:
            objects: dict[str, object] = {s.name: _as_object(s, own=_own(config, s)) for s in found}
            known = None if isinstance(at_work, str) else at_work
            objects["at_work"] = asdict(known) if known else None
            typer.echo(json.dumps(objects))
        else:
            for server in found:
                typer.echo(_as_line(server, own=_own(config, server)))
            for line in _at_work_lines(at_work):
                typer.echo(line)
        if not all(server.running or _own(config, server) for server in found):
            raise typer.Exit(3)


def _members(kafka: str, app_id: str) -> Members | str:
    """Return who is at work, or why that is not known."""
    # Only this talks to Kafka: the others start without its client.
    from streams.commands.talking import quiet_client
    from streams.members import KafkaAwayError, find_members

    with quiet_client():
        try:
            return asyncio.run(find_members(kafka, app_id=app_id))
        except KafkaAwayError as error:
            return str(error)


def _at_work_lines(at_work: Members | str | None) -> Iterator[str]:
    if isinstance(at_work, str):
        yield f"workers   not known: {at_work}"
    elif at_work is not None:
        yield f"workers   {at_work.workers}; requests that none is done with: {at_work.waiting}"
        yield f"sinks     {at_work.sinks}"


def _own_servers(config: Config, found: tuple[ServerStatus, ServerStatus]) -> Config:
    """Return the settings with the servers of the user's own only.

    What ``up`` printed may stand in the environment: it names the embedded ones.
    """
    broker, database = found
    kafka, url = config.kafka, config.database_url
    return replace(
        config,
        kafka=None if kafka == broker.endpoint else kafka,
        database_url=None if url and _plain(url) == _plain(database.endpoint) else url,
    )


def _plain(url: str | None) -> str | None:
    return connection_string(url) if url else None


def _own(config: Config, server: ServerStatus) -> bool:
    return bool(config.kafka if server.name == "kafka" else config.database_url)


def _moved(before: Sequence[ServerStatus], after: Sequence[ServerStatus]) -> Iterator[str]:
    """Say which servers are elsewhere now, because another program has taken their port."""
    for old, new in zip(before, after, strict=True):
        if old.endpoint and new.running and old.endpoint != new.endpoint:
            # A URL holds a password.
            former, now = (str(text).rsplit("@", 1)[-1] for text in (old.endpoint, new.endpoint))
            yield (
                f"{new.name} is at {now} now: the port of {former} was taken; "
                "restart workers and sinks, and set TOLLWAY_* anew where a shell has them"
            )


def _as_object(server: ServerStatus, *, own: bool) -> dict[str, object]:
    return {"embedded": not own, **asdict(server)}


def _as_line(server: ServerStatus, *, own: bool) -> str:
    if own:
        # Its URL is not shown: it is the user's, and may hold a password.
        state = "not started here: the environment names a server of your own"
    elif server.running:
        state = f"running  pid {server.pid}  {server.endpoint}"
    else:
        state = "stopped"
    return f"{server.name:<9} {state}"


@contextmanager
def _errors_told() -> Iterator[None]:
    """Turn what a user can do something about into a message and exit code 1."""
    try:
        yield
    except EmbeddedError as error:
        typer.echo(f"tollway: {error}", err=True)
        raise typer.Exit(1) from None
