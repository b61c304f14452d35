"""The command ``tollway``; the only reader of the environment."""

from __future__ import annotations

import importlib
import os
import sys

import typer

from streams.config import Config, ConfigError

COMMANDS = ("stack", "topics", "records", "worker", "ledger", "bench")
"""Modules of ``streams.commands``; each adds its commands in ``register(app)``."""


def build_cli() -> typer.Typer:
    """Return the command line with every command registered."""
    app = typer.Typer(
        name="tollway",
        help="LLM routing inside Kafka.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def settings(ctx: typer.Context) -> None:
        """LLM routing inside Kafka: decide, pace, account, explain."""
        try:
            ctx.obj = Config.from_env(os.environ)
        except ConfigError as exc:
            typer.echo(f"tollway: {exc}", err=True)
            raise typer.Exit(2) from None

    for name in COMMANDS:
        importlib.import_module(f"streams.commands.{name}").register(app)
    return app


def main() -> None:
    """Run the command line."""
    # One BLAS thread: the matrices are small, and the sums of a replay must not depend on cores.
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    sys.exit(build_cli()())


if __name__ == "__main__":
    main()
