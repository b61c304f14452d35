"""The system under test: servers, links, and worker and sink processes that are kept running."""

from __future__ import annotations

import asyncio
import ctypes
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from streams import topics
from streams.client import Client
from streams.embedded import PostgresServer
from streams.embedded.processes import LOOPBACK, free_port
from streams.ledger import migrate
from streams.records import CatalogEntry
from tests.nemesis_parts.links import Link
from tests.nemesis_parts.servers import LinkedKafka
from tests.nemesis_parts.world import DEFER_MS, PARTITIONS, SESSION_S, TTL_S

WORKERS = 4
SINKS = 2
PAUSE_S = 0.3
"""Waited before a process that ended is started again."""
FAILED_PAUSE_S = 2.0
"""Waited if it ended by itself, other than to be started again: a server may be away."""
RESTART = (0, 70, -9, -15)
"""Codes with which a process may end: stopped, to be started again, killed, stopped too early."""


@dataclass(eq=False)
class Slot:
    """A place for one process: while it is wanted, it is started again whenever it ends."""

    name: str
    command: list[str]
    settings: dict[str, str]
    log: Path
    wanted: bool = False
    exits: Counter[int] = field(default_factory=Counter)
    process: asyncio.subprocess.Process | None = None
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def running(self) -> bool:
        """Whether its process is there, perhaps asleep."""
        return self.process is not None and self.process.returncode is None

    def want(self, wanted: bool) -> None:
        """Start it, or ask it to end in good order."""
        self.wanted = wanted
        self._changed.set()
        if not wanted:
            self.signal(signal.SIGTERM)

    def signal(self, number: int) -> None:
        """Send its process a signal, if there is one."""
        if self.running and self.process is not None:
            with suppress(ProcessLookupError):
                self.process.send_signal(number)

    def kill(self) -> None:
        """End its process at once, also one that is asleep."""
        self.signal(signal.SIGKILL)

    async def keep(self) -> None:
        """Keep it as it is wanted, until cancelled."""
        try:
            while True:
                if not self.wanted:
                    self._changed.clear()
                    await self._changed.wait()
                    continue
                await self._spawn()
                assert self.process is not None
                if not self.wanted:
                    self.signal(signal.SIGTERM)
                code = await self.process.wait()
                self.exits[code] += 1
                await asyncio.sleep(PAUSE_S if code in RESTART else FAILED_PAUSE_S)
        finally:
            self.signal(signal.SIGKILL)
            if self.process is not None:
                await self.process.wait()

    async def _spawn(self) -> None:
        with self.log.open("ab") as output:
            self.process = await asyncio.create_subprocess_exec(
                *self.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=asyncio.subprocess.STDOUT,
                env={**_inherited(), **self.settings},
                preexec_fn=_die_with_parent,
                start_new_session=True,
            )


class Cluster:
    """Everything that faults are done to, below one folder.

    Parameters
    ----------
    folder : Path
        The servers' folders are ``kafka-*`` and ``postgres-*`` in it, for ``tests/guard.py``.
    worker : sequence of str, optional
        What runs in the workers' slots; Tollway's worker if left out.
    sinks : int
        How many slots there are for Tollway's sink.
    settings : mapping
        Variables for every process, besides Tollway's.
    """

    def __init__(
        self, folder: Path, *, worker: Sequence[str] = (), sinks: int = SINKS,
        settings: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.folder = folder
        self._commands = {k: [sys.executable, "-m", "streams", k] for k in ("worker", "sink")}
        if worker:
            self._commands["worker"] = [sys.executable, *worker]
        self._settings = dict(settings or {})
        self.postgres = PostgresServer(folder / "postgres-nemesis")
        self.links: dict[str, Link] = {}
        self.slots: dict[str, Slot] = {}
        self._names = [f"worker{n}" for n in range(WORKERS)] + [f"sink{n}" for n in range(sinks)]
        ways = {}
        for name in [*self._names, "load"]:
            upstream, port = free_port(), free_port()
            self.links[name] = Link(name, port, upstream)
            ways[name.upper()] = (upstream, port)
        self.broker = LinkedKafka(folder / "kafka-nemesis", ways)
        self._keepers: list[asyncio.Task[None]] = []
        self.direct = self.database_url = ""

    async def start(self, entries: Iterable[CatalogEntry] = ()) -> None:
        """Start servers and links, create topics and tables; no worker or sink runs yet."""
        self.direct = await asyncio.to_thread(self.broker.start)
        await asyncio.to_thread(self.postgres.start)
        self.database_url = await asyncio.to_thread(self.postgres.create_database, "ledger")
        await topics.create(self.direct, app_id="tollway", partitions=PARTITIONS)
        await asyncio.to_thread(migrate.upgrade, self.database_url)
        async with Client(self.direct) as client:
            await client.declare(entries)
        port = int(self.database_url.rsplit(":", 1)[1].partition("/")[0])
        self.links["ledger"] = Link("ledger", free_port(), port)
        for link in self.links.values():
            await link.start()
        for name in self._names:
            slot = self._slot(name, self.database_url.replace(f":{port}/", f":{self.ledger_port}/"))
            self.slots[name] = slot
            self._keepers.append(asyncio.create_task(slot.keep()))

    @property
    def ledger_port(self) -> int:
        """Return where sinks find the ledger."""
        return self.links["ledger"].port

    def kafka(self, name: str) -> str:
        """Return where the program in a slot finds the broker."""
        return f"{LOOPBACK}:{self.links[name].port}"

    def of(self, kind: str) -> list[Slot]:
        """Return the slots of one kind, ``worker`` or ``sink``."""
        return [slot for name, slot in self.slots.items() if name.startswith(kind)]

    def up(self, kind: str) -> list[Slot]:
        """Return the slots of one kind whose processes run and should."""
        return [slot for slot in self.of(kind) if slot.wanted and slot.running]

    def _slot(self, name: str, ledger_url: str) -> Slot:
        settings = {
            "OPENBLAS_NUM_THREADS": "1",
            "TOLLWAY_HOME": str(self.folder),
            "TOLLWAY_KAFKA": self.kafka(name),
            "TOLLWAY_DATABASE_URL": ledger_url,
            "TOLLWAY_PARTITIONS": str(PARTITIONS),
            "TOLLWAY_SESSION_TIMEOUT_S": str(SESSION_S),
            "TOLLWAY_CHECKPOINT_MS": "500",
            "TOLLWAY_RESERVATION_TTL_S": str(TTL_S),
            "TOLLWAY_DEFER_MS": str(DEFER_MS),
            **self._settings,
        }
        command = self._commands[name.rstrip("0123456789")]
        return Slot(name, command, settings, self.folder / f"{name}.log")

    def heal(self) -> None:
        """Wake every process and let every link pass."""
        for link in self.links.values():
            link.heal()
        for slot in self.slots.values():
            slot.signal(signal.SIGCONT)

    async def close(self) -> None:
        """End everything; the files stay."""
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        for link in self.links.values():
            await link.stop()
        await asyncio.to_thread(self.broker.kill)
        await asyncio.to_thread(self.postgres.stop, "immediate")

    def exits(self, kind: str) -> dict[str, int]:
        """Return how often processes of a kind ended with which code."""
        total: Counter[int] = Counter()
        for slot in self.of(kind):
            total.update(slot.exits)
        return {str(code): count for code, count in sorted(total.items())}

    def find_in_logs(self, kind: str, pattern: str) -> list[re.Match[str]]:
        """Return where the processes of a kind said this in their logs, once a line."""
        return [
            found
            for slot in self.of(kind)
            if slot.log.exists()
            for line in slot.log.read_text(errors="replace").splitlines()
            if (found := re.search(pattern, line))
        ]


def _inherited() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("TOLLWAY_")}
    # Compiling the libraries anew takes longer than everything else that a start does.
    kept.pop("PYTHONDONTWRITEBYTECODE", None)
    return kept


def _die_with_parent() -> None:
    """Let the kernel kill this process when the nemesis ends, however it ends; Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
