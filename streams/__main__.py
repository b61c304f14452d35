"""The command ``tollway``; the only reader of the environment."""

from __future__ import annotations

import importlib
import os
import sys

import typer

from streams import failpoints
from streams.config import Config, ConfigError

COMMANDS = {
    "up": "stack",
    "down": "stack",
    "status": "stack",
    "topics": "topics",
    "catalog": "records",
    "send": "records",
    "outcome": "records",
    "tail": "records",
    "explain": "records",
    "worker": "worker",
    "sink": "ledger",
    "migrate": "ledger",
    "audit": "ledger",
    "demo": "demo",
    "replay": "replay",
    "replay-log": "replay_log",
    "evaluate": "evaluate",
    "encoder": "encoder",
    "asyncapi": "records",
    "bench": "bench",
}
"""Commands, and the module of ``streams.commands`` that adds each in its ``register(app)``."""


def build_cli(command: str | None = None) -> typer.Typer:
    """Return the command line; with only the module of ``command`` if it is one.

    A worker that starts again must not wait for the imports of commands that it is not.
    """
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
        failpoints.arm(ctx.obj.failpoint)

    wanted = [COMMANDS[command]] if command in COMMANDS else dict.fromkeys(COMMANDS.values())
    for name in wanted:
        importlib.import_module(f"streams.commands.{name}").register(app)
    return app


def main() -> None:
    """Run the command line."""
    # One BLAS thread: the matrices are small, and the sums of a replay must not depend on cores.
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    command = next((word for word in sys.argv[1:] if not word.startswith("-")), None)
    sys.exit(build_cli(command)())


if __name__ == "__main__":
    main()
