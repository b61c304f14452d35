"""The command that decides."""

from __future__ import annotations

import asyncio
import sys

import typer

from streams.collector import relax_collector
from streams.commands.common import config_of, fail, set_up_logging


def register(app: typer.Typer) -> None:
    """Add ``worker``."""

    @app.command()
    def worker(ctx: typer.Context) -> None:
        """Decide requests and settle outcomes until stopped; start as many as you like."""
        from streams.config import ConfigError
        from streams.worker import Worker

        config = config_of(ctx)
        set_up_logging(config, "faust", "mode", "aiokafka")
        try:
            kafka = config.kafka or config.endpoints()[0]
            asyncio.run(_work(config, kafka, Worker))
        except ConfigError as exc:
            fail(str(exc))


async def _work(config: object, kafka: str, make: type) -> None:
    relax_collector()
    # The thread that fetches asks for the lock of the interpreter at every step: while batches are
    # decided, each would take the usual 5 ms.
    sys.setswitchinterval(0.001)
    # Faust's app must be made inside the loop that runs it.
    await make(config, kafka).run()
