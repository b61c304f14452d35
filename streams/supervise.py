"""Keeps processes of Tollway running: starts them, starts them anew when they fall, stops them."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

TOLLWAY = (sys.executable, "-m", "streams")
RESTARTS_MAX = 5
"""Restarts of one process after which it is given up: something is wrong that a restart keeps."""
PAUSE_S = 0.2
"""Waited before a restart, so that a process that falls at once does not take the machine."""


class SupervisorError(Exception):
    """A process ended for good; the message names its log."""


@dataclass(slots=True, kw_only=True, eq=False)
class Child:
    """One supervised process: its arguments after ``tollway``, its log, what became of it."""

    name: str
    arguments: Sequence[str]
    log: Path
    process: asyncio.subprocess.Process | None = None
    restarts: int = 0
    exits: list[int] = field(default_factory=list)

    @property
    def pid(self) -> int | None:
        """The pid while it runs."""
        process = self.process
        return process.pid if process is not None and process.returncode is None else None


class Supervisor:
    """Runs ``tollway <arguments>``, one process for each child.

    ``async with Supervisor(folder, settings) as supervisor: ...`` stops all of them at the end.
    A child that exits with 70 (a worker that must begin anew) or is killed by a signal is started
    again; any other end is for good: :meth:`check` raises.

    Parameters
    ----------
    folder : Path
        Of the logs, one file a child.
    settings : mapping
        ``TOLLWAY_*`` for the children, besides the environment that they inherit.
    command : sequence of str
        What the arguments of a child are appended to.
    """

    def __init__(
        self, folder: Path, settings: Mapping[str, str], *, command: Sequence[str] = TOLLWAY
    ) -> None:
        self._folder = folder
        self._command = command
        self._settings = dict(settings)
        self._watching: list[asyncio.Task[None]] = []
        self._stopping = False
        self._failure: SupervisorError | None = None
        self.children: dict[str, Child] = {}

    async def __aenter__(self) -> Supervisor:
        self._folder.mkdir(parents=True, exist_ok=True)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    async def start(self, name: str, *arguments: str) -> Child:
        """Start a process and keep it running."""
        child = Child(name=name, arguments=arguments, log=self._folder / f"{name}.log")
        await self._spawn(child)
        self.children[name] = child
        self._watching.append(asyncio.create_task(self._watch(child)))
        return child

    def kill(self, name: str) -> int:
        """Kill a process with -9 and return the pid that it had; it is started again."""
        child = self.children[name]
        if child.process is None or child.process.returncode is not None:
            raise SupervisorError(f"{name} is not running")
        child.process.kill()
        return child.process.pid

    def check(self) -> None:
        """Raise :class:`SupervisorError` if a process has ended for good."""
        if self._failure is not None:
            raise self._failure

    async def stop(self, *, timeout_s: float = 20.0) -> None:
        """Ask every process to end with SIGTERM, kill those that do not, and wait for all."""
        self._stopping = True
        for process in self._running():
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        try:
            if self._watching:
                await asyncio.wait(self._watching, timeout=timeout_s)
        finally:
            for process in self._running():
                with suppress(ProcessLookupError):
                    process.kill()
        await asyncio.gather(*self._watching, return_exceptions=True)

    def _running(self) -> Iterator[asyncio.subprocess.Process]:
        for child in self.children.values():
            if child.process is not None and child.process.returncode is None:
                yield child.process

    async def _spawn(self, child: Child) -> None:
        with child.log.open("ab") as output:
            child.process = await asyncio.create_subprocess_exec(
                *self._command,
                *child.arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=asyncio.subprocess.STDOUT,
                # Handed on unread, as every child inherits it; the settings come from the caller.
                env={**os.environ, **self._settings},
                # The terminal's Ctrl-C is the supervisor's to handle.
                start_new_session=True,
            )

    async def _watch(self, child: Child) -> None:
        while True:
            assert child.process is not None
            code = await child.process.wait()
            child.exits.append(code)
            if self._stopping:
                return
            if (code != 70 and code >= 0) or child.restarts >= RESTARTS_MAX:
                self._failure = SupervisorError(
                    f"{child.name} ended with code {code} after {child.restarts} restarts, "
                    f"see {child.log}"
                )
                return
            await asyncio.sleep(PAUSE_S)
            # The wait was long enough to be told to stop.
            if self._stopping:
                return
            child.restarts += 1
            await self._spawn(child)
            if self._stopping:
                child.process.terminate()
