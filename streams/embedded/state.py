"""What a server's folder remembers between starts: its process and its ports."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from streams.embedded.processes import Process, write_atomically


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerState:
    """The content of ``server.json``; a port outlives its process, so that it can be kept."""

    ports: tuple[int, ...]
    pid: int | None = None
    started_s: float | None = None

    @property
    def process(self) -> Process | None:
        """The process that was started last, whether it still runs or not."""
        if self.pid is None or self.started_s is None:
            return None
        return Process(pid=self.pid, started_s=self.started_s)


def read_state(path: Path) -> ServerState | None:
    """Return what was written, or None where there is nothing readable."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=ServerState)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def write_state(path: Path, ports: tuple[int, ...], process: Process | None) -> None:
    """Write the state of a server that was started (or, without a process, stopped)."""
    state = ServerState(
        ports=ports,
        pid=process.pid if process else None,
        started_s=process.started_s if process else None,
    )
    write_atomically(path, msgspec.json.encode(state).decode())
