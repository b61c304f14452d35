"""What the commands share."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer

from streams.config import Config, ConfigError


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
