"""The command that creates the topics."""

from __future__ import annotations

import asyncio

import typer

from streams.commands.common import config_of, fail, kafka_of


def register(app: typer.Typer) -> None:
    """Add ``topics``."""

    @app.command()
    def topics(ctx: typer.Context) -> None:
        """Create the topics that are missing; refuse those with another partition count."""
        from streams.topics import TopicError, create, wanted_topics

        config = config_of(ctx)
        try:
            created = asyncio.run(
                create(
                    kafka_of(ctx),
                    app_id=config.app_id,
                    partitions=config.partitions,
                    replication=config.replication,
                )
            )
        except TopicError as exc:
            fail(str(exc))
        for name in wanted_topics(config.app_id):
            typer.echo(f"{'created' if name in created else 'exists '}  {name}")
