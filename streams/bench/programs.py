"""Programs that are measured: started, watched, charged with their processor time, ended."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

from streams.embedded.processes import free_port

TOLLWAY = (sys.executable, "-m", "streams")
_STOP_S = 30.0
_TICKS = os.sysconf("SC_CLK_TCK")


class ProgramError(Exception):
    """A program ended that was to go on, or did not do its work in time."""


class Program:
    """A process for the length of a ``with``; ended with SIGTERM, then with SIGKILL.

    Parameters
    ----------
    command : sequence of str
    settings : mapping
        Added to the environment, which the process inherits.
    """

    def __init__(self, command: Sequence[str], settings: Mapping[str, str] | None = None) -> None:
        self._command, self._settings = command, settings or {}
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    def __enter__(self) -> Program:
        # A file and not a pipe: nobody reads while the program runs.
        self._log = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            self._command,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", **self._settings},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None
    ) -> None:
        assert self._process is not None
        assert self._log is not None
        self._process.terminate()
        try:
            self._process.wait(timeout=_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    @property
    def pid(self) -> int:
        """The process id."""
        assert self._process is not None
        return self._process.pid

    def check(self) -> None:
        """Raise :class:`ProgramError` with what it said if it has ended."""
        assert self._process is not None
        if self._process.poll() is not None:
            self.fail(f"ended with code {self._process.returncode}")

    def fail(self, reason: str) -> None:
        """Raise :class:`ProgramError` with the reason and the end of what it said."""
        assert self._log is not None
        self._log.seek(0)
        said = self._log.read().decode(errors="replace")[-2_000:]
        raise ProgramError(f"{' '.join(self._command)} {reason}:\n{said}")


def echo(kind: str, kafka: str, source: str, target: str) -> list[str]:
    """Return the command of a program that passes records on; see ``streams.bench.echo``."""
    return [sys.executable, "-m", "streams.bench.echo", kind, kafka, source, target]


def worker_settings(
    kafka: str, home: Path, *, partitions: int, **more: str | int
) -> dict[str, str]:
    """Return the settings of a worker on this broker; ``more`` by names without ``TOLLWAY_``."""
    settings = {
        "KAFKA": kafka, "DATABASE_URL": "postgresql://unused", "PARTITIONS": partitions,
        "HOME": home, "LOG_LEVEL": "warning", **more,
    }  # fmt: skip
    return {f"TOLLWAY_{name}": str(value) for name, value in settings.items()}


def cpu_seconds(pid: int | None) -> float:
    """Return the processor seconds of a running process and its ended children; 0 if unknown."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / _TICKS


def tree_cpu_seconds(pid: int | None) -> float:
    """Return the processor seconds of a process and all its children, as Postgres has them."""
    if pid is None:
        return 0.0
    children = [
        int(child)
        for task in Path(f"/proc/{pid}/task").glob("*/children")
        for child in task.read_text().split()
    ]
    return cpu_seconds(pid) + sum(cpu_seconds(child) for child in children)


def loopback_port() -> int:
    """Return a free port for a program's own page."""
    return free_port()
