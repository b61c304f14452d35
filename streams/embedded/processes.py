"""Processes that outlive their starter: spawn them, know them again, end them."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from streams.embedded.errors import EmbeddedError, MissingExtraError

LOOPBACK = "127.0.0.1"

# Below the range that kernels give to outgoing connections (32768 on Linux, 49152 elsewhere):
# a port kept for the next start is then not lost to some client's connection in between.
_PORTS = range(20_000, 32_000)

_POLL_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One process for certain: a pid may be given away again, with its start time it may not."""

    pid: int
    started_s: float

    @property
    def running(self) -> bool:
        """Whether this very process is alive; one that only waits to be reaped is not."""
        psutil = _psutil()
        _reap(self.pid)
        try:
            process = psutil.Process(self.pid)
            if abs(process.create_time() - self.started_s) >= 1:
                return False
            # A killed Java is a zombie before its other threads have let go of ports and locks.
            return bool(process.status() != psutil.STATUS_ZOMBIE or process.num_threads() > 1)
        except psutil.NoSuchProcess:  # the base of ZombieProcess, too
            return False

    def send(self, number: int) -> None:
        """Send a signal, if the process is still there."""
        if self.running:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def wait(self, timeout_s: float) -> bool:
        """Wait for the end; False if it did not come in time."""
        return poll(lambda: not self.running, timeout_s=timeout_s)

    def end(self, number: int = signal.SIGTERM, *, timeout_s: float = 30.0) -> None:
        """Ask the process to end with this signal; after ``timeout_s`` kill it."""
        self.send(number)
        if not self.wait(timeout_s):
            self.send(signal.SIGKILL)
            if not self.wait(10.0):
                raise EmbeddedError(f"process {self.pid} does not end, not even when killed")


class User(NamedTuple):
    """Whom a process runs as."""

    user_id: int
    group_id: int


class Identity(TypedDict, total=False):
    """Those arguments of `subprocess.Popen` that say whom the process runs as."""

    user: int
    group: int
    extra_groups: list[int]


def identity(user: User | None) -> Identity:
    """Return the arguments for a process of this user, or of the caller."""
    if user is None:
        return {}
    return {"user": user.user_id, "group": user.group_id, "extra_groups": []}


def spawn(
    arguments: Sequence[str],
    *,
    log: Path,
    env: Mapping[str, str],
    user: User | None = None,
) -> Process:
    """Start a process in a session of its own, with its output appended to ``log``.

    It gets neither the terminal's Ctrl-C nor its hang-up, and holds no folder but its own.
    ``user`` needs root: the process then runs as that user, with nothing of root's left.
    """
    with log.open("ab") as output:
        child = subprocess.Popen(  # the list form: no shell reads the arguments
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(env),
            cwd="/",
            start_new_session=True,
            **identity(user),
        )
    process = _identify(child.pid)
    # The child is reaped by pid (see _reap), also from another object for the same server;
    # left to Popen, its destructor would warn that the process is still running.
    child.returncode = 0
    return process


def find(matches: Callable[[list[str]], bool]) -> Iterator[Process]:
    """Return the running processes whose command line matches.

    This finds a server whose starter was killed before it could note the pid.
    """
    psutil = _psutil()
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            arguments = process.cmdline()
            if arguments and matches(arguments):
                yield Process(pid=process.pid, started_s=process.create_time())


def find_in(folder: Path, name: str) -> Iterator[Process]:
    """Return the running processes of this name that work in the folder."""
    psutil = _psutil()
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.name() == name and process.cwd() == str(folder):
                yield Process(pid=process.pid, started_s=process.create_time())


def is_alive(pid: int) -> bool:
    """Whether some process, whichever it is, has this pid."""
    return bool(_psutil().pid_exists(pid))


def poll(condition: Callable[[], bool], *, timeout_s: float) -> bool:
    """Return True as soon as the condition holds, False when the time is over."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_S)
    return True


def port_is_free(port: int) -> bool:
    """Whether a server could listen on this loopback port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as candidate:
        # As servers do it: connections of the last run that linger do not count.
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def free_port(*, avoid: Sequence[int] = ()) -> int:
    """Return a loopback port on which nobody listens."""
    chance = random.SystemRandom()
    for _ in range(200):
        port = chance.choice(_PORTS)
        if port not in avoid and port_is_free(port):
            return port
    raise EmbeddedError(f"no free port between {_PORTS.start} and {_PORTS.stop}")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file; the kernel releases it when its holder dies."""
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def tail(path: Path, *, lines: int = 20) -> str:
    """Return the last lines of a log file, or nothing if there is none."""
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return ""


def write_atomically(path: Path, text: str, *, mode: int = 0o600) -> None:
    """Replace a small file as a whole: a reader, or a crash, never sees half of it."""
    draft = path.with_name(f"{path.name}.{os.getpid()}.draft")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(handle, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def require_posix() -> None:
    """Refuse systems whose processes work differently."""
    if sys.platform == "win32":
        raise EmbeddedError("the embedded stack needs Linux or macOS")


def _identify(pid: int) -> Process:
    psutil = _psutil()
    try:
        return Process(pid=pid, started_s=psutil.Process(pid).create_time())
    except psutil.NoSuchProcess as error:
        raise EmbeddedError(f"process {pid} ended at once") from error


def _reap(pid: int) -> None:
    """Collect the process if it is our own ended child."""
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def _psutil() -> Any:  # it has no types
    try:
        import psutil  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingExtraError("psutil") from error
    return psutil
