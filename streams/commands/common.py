"""What the commands share."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer

from streams.config import Config, ConfigError

REPEAT_S = 10.0
MESSAGES_MAX = 1_000


def config_of(ctx: typer.Context) -> Config:
    """Return the settings that were read at the start."""
    assert isinstance(ctx.obj, Config)
    return ctx.obj


def endpoints_of(ctx: typer.Context) -> tuple[str, str]:
    """Return Kafka's servers and Postgres' URL, or end with a clear word on what is missing."""
    try:
        return config_of(ctx).endpoints()
    except ConfigError as exc:
        fail(str(exc))


def kafka_of(ctx: typer.Context) -> str:
    """Return Kafka's servers; Postgres need not run."""
    return config_of(ctx).kafka or endpoints_of(ctx)[0]


def ledger_of(ctx: typer.Context) -> str | None:
    """Return the ledger's address if there is one: for what the topics alone suffice for, too."""
    config = config_of(ctx)
    try:
        return config.database_url or config.endpoints()[1]
    except ConfigError:
        return None


def set_up_logging(config: Config, *libraries: str) -> None:
    """Log to the standard error; of the libraries warnings only, and each once in a while."""
    level = config.log_level.upper()
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    sparing = Sparing(libraries)
    for handler in logging.getLogger().handlers:
        handler.addFilter(sparing)
    for name in libraries:
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger().level))


class Sparing(logging.Filter):
    """Lets a message of these libraries through once in :data:`REPEAT_S`.

    A Kafka client that cannot reach its broker says so 85 times a second.
    """

    def __init__(self, libraries: Iterable[str]) -> None:
        super().__init__()
        self._libraries = frozenset(libraries)
        self._told: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record is to be told."""
        if record.name.partition(".")[0] not in self._libraries:
            return True
        # Without its arguments: ports and counts differ each time.
        message = record.name, str(record.msg)
        if record.created - self._told.get(message, 0.0) < REPEAT_S:
            return False
        if len(self._told) >= MESSAGES_MAX:
            self._told.clear()
        self._told[message] = record.created
        return True


@contextmanager
def foreign_output() -> Iterator[None]:
    """Send what libraries print to the standard error: HiGHS says a line there now and then."""
    sys.stdout.flush()
    own = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(own, 1)
        os.close(own)


def fail(message: str, code: int = 2) -> NoReturn:
    """Say what is wrong and end the command."""
    typer.echo(f"tollway: {message}", err=True)
    raise typer.Exit(code)
