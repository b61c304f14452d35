"""The command that shows it all."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from streams.commands.common import config_of, fail

if TYPE_CHECKING:
    from streams.config import Config


def register(app: typer.Typer) -> None:
    """Add ``demo``."""

    @app.command()
    def demo(
        ctx: typer.Context,
        fast: Annotated[
            bool, typer.Option("--fast", help="A quarter of the trace, within 90 seconds.")
        ] = False,
        keep: Annotated[
            bool, typer.Option("--keep", help="Leave the demo's servers running at the end.")
        ] = False,
    ) -> None:
        """Play recorded prompts through workers and ledger; exit with 1 if a law was broken."""
        from streams.demo.stage import DemoError
        from streams.embedded import EmbeddedError
        from streams.supervise import SupervisorError

        try:
            ok = asyncio.run(_interruptible(config_of(ctx), fast=fast, keep=keep))
        except (DemoError, EmbeddedError, SupervisorError) as exc:
            fail(str(exc), 1)
        except (KeyboardInterrupt, asyncio.CancelledError):
            fail("stopped", 130)
        raise typer.Exit(0 if ok else 1)


async def _interruptible(config: Config, *, fast: bool, keep: bool) -> bool:
    """Let SIGTERM end the demo as Ctrl-C does: in good order."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await _demo(config, fast=fast, keep=keep)


async def _demo(config: Config, *, fast: bool, keep: bool) -> bool:
    from streams.demo import stage as stages
    from streams.demo.final import conclude
    from streams.demo.plan import FAST, FULL
    from streams.demo.run import SEED, Run
    from streams.demo.tell import next_commands, print_result
    from streams.demo.view import audience

    console = Console()
    if not console.is_terminal:
        console.width = 160
    began_s = time.monotonic()
    own = not (config.kafka and config.database_url)
    if own:
        console.print("starting servers; the first time downloads 45 MB", highlight=False)
    try:
        stage = await stages.prepare(config)
        console.print(f"servers run after {time.monotonic() - began_s:.0f} s", highlight=False)
        with audience(console) as show:
            run = Run(
                stage, FAST if fast else FULL, show,
                clock_s=time.monotonic, clock_ms=lambda: time.time_ns() // 1_000_000,
            )  # fmt: skip
            played = await run.play()
        console.print("checking every law against topics and ledger", highlight=False)
        ended_s = time.monotonic()
        result = await conclude(stage, played, seed=SEED)
        console.print(f"checked in {time.monotonic() - ended_s:.0f} s", highlight=False)
        print_result(console, result)
    except BaseException:
        keep = False
        raise
    finally:
        if not keep:
            with contextlib.suppress(asyncio.CancelledError):
                await stages.close(stages.home_of(config))
    console.print(f"{time.monotonic() - began_s:.0f} s from start to end; next:", highlight=False)
    for command in next_commands(stage.home, result.example, own=own, kept=keep):
        console.print(f"  {command}", highlight=False, soft_wrap=True)
    return result.ok
