"""A real Apache Kafka on this machine: one node in KRaft mode, in a folder of its own."""

from __future__ import annotations

import shutil
import signal
import socket
import struct
import subprocess
import uuid
from base64 import urlsafe_b64encode
from pathlib import Path

from streams.embedded.errors import EmbeddedError, ServerStartError
from streams.embedded.jars import class_path, java
from streams.embedded.processes import (
    LOOPBACK,
    Process,
    find,
    free_port,
    locked,
    poll,
    port_is_free,
    require_posix,
    spawn,
    tail,
    write_atomically,
)
from streams.embedded.state import read_state, write_state

_READY = "Kafka Server started"

# The short sessions make a restart after a kill a matter of seconds: with the defaults the
# controller waits nine seconds before it believes that the old broker is gone.
_SETTINGS = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@{host}:{controller_port}
listeners=PLAINTEXT://{host}:{port},CONTROLLER://{host}:{controller_port}
advertised.listeners=PLAINTEXT://{host}:{port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=PLAINTEXT
log.dirs={data}
auto.create.topics.enable=false
broker.session.timeout.ms=1500
broker.heartbeat.interval.ms=300
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=1
message.max.bytes=1572864
log.retention.hours=720
log.cleaner.dedupe.buffer.size=33554432
num.network.threads=2
num.io.threads=4
"""

_LOGGING = """\
<Configuration status="WARN" shutdownHook="disable">
  <Appenders>
    <RollingFile name="file" fileName="{log}" filePattern="{log}.%i">
      <PatternLayout pattern="%d{{ISO8601}} %p %m (%c{{1}})%n"/>
      <Policies><SizeBasedTriggeringPolicy size="16MB"/></Policies>
      <DefaultRolloverStrategy max="3"/>
    </RollingFile>
    <File name="lifecycle" fileName="{lifecycle}" append="false">
      <PatternLayout pattern="%d{{ISO8601}} %m%n"/>
    </File>
  </Appenders>
  <Loggers>
    <Logger name="kafka.server.KafkaRaftServer" level="INFO">
      <AppenderRef ref="lifecycle"/>
    </Logger>
    <Root level="WARN"><AppenderRef ref="file"/></Root>
  </Loggers>
</Configuration>
"""


class KafkaServer:
    """A broker in ``folder``; several objects for one folder, in one or more programs, agree.

    Parameters
    ----------
    folder : Path
        Data, logs and state; created where missing. The data survive `stop` and `kill`.
    port : int, optional
        Port to listen on. Left out: the port of the last start, or a free one.
    heap_mb : int
        Java heap.
    """

    def __init__(self, folder: Path, *, port: int | None = None, heap_mb: int = 512) -> None:
        self.folder = folder.expanduser().resolve()
        self._port = port
        self._heap_mb = heap_mb
        self._state_path = self.folder / "server.json"
        self._settings_path = self.folder / "server.properties"
        self._log_path = self.folder / "server.log"
        self._output_path = self.folder / "output.log"
        # Apart from the log, which is rolled over: it says for as long as the broker runs that
        # the broker came up.
        self._lifecycle_path = self.folder / "lifecycle.log"
        self._scratch = self.folder / "scratch"

    @property
    def process(self) -> Process | None:
        """The running broker, if there is one."""
        state = read_state(self._state_path)
        if state and state.process and state.process.running:
            return state.process
        # Its starter may have been killed before it noted the process.
        return next(find(self._is_ours), None) if self._settings_path.exists() else None

    @property
    def pid(self) -> int | None:
        """The running broker's pid."""
        process = self.process
        return process.pid if process else None

    @property
    def running(self) -> bool:
        """Whether the broker's process is alive."""
        return self.process is not None

    def known_bootstrap(self) -> str | None:
        """Return where the broker listens, or did the last time; None before the first start."""
        state = read_state(self._state_path)
        return f"{LOOPBACK}:{state.ports[0]}" if state else None

    def start(self, *, timeout_s: float = 180.0) -> str:
        """Start the broker unless it runs, wait until it serves, return ``host:port``."""
        require_posix()
        # Prompts may lie in the topics' files; Java would let everyone read them.
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locked(self.folder / "start.lock"):
            running = self.process
            if running and self._is_ready(running, timeout_s):
                ports = self._ports_in_settings()
                write_state(self._state_path, ports, running)
                return f"{LOOPBACK}:{ports[0]}"
            if running:
                running.end(signal.SIGKILL)
            ports = self._choose_ports()
            self._write_settings(ports)
            self._format()
            process = self._launch(ports)
            if not self._is_ready(process, timeout_s):
                reason = f"silent for {timeout_s:.0f} s" if process.running else "it ended"
                process.end(signal.SIGKILL)
                raise ServerStartError("Kafka", reason, self._log_tails())
            return f"{LOOPBACK}:{ports[0]}"

    def stop(self, *, timeout_s: float = 30.0) -> None:
        """Stop the broker in good order; nothing happens if it does not run."""
        self._end(signal.SIGTERM, timeout_s)

    def kill(self) -> None:
        """Kill the broker with SIGKILL and wait until it is gone."""
        self._end(signal.SIGKILL, 10.0)

    def _end(self, number: int, timeout_s: float) -> None:
        if not self.folder.exists():
            return
        with locked(self.folder / "start.lock"):
            process = self.process
            if process:
                process.end(number, timeout_s=timeout_s)

    def _is_ours(self, arguments: list[str]) -> bool:
        return arguments[-1] == str(self._settings_path) and "kafka.Kafka" in arguments

    def _ports_in_settings(self) -> tuple[int, int]:
        """Return the ports that the last started broker was given."""
        lines = self._settings_path.read_text().splitlines()
        listeners = next(line for line in lines if line.startswith("listeners="))
        port, controller_port = (int(part.rsplit(":", 1)[1]) for part in listeners.split(","))
        return port, controller_port

    def _choose_ports(self) -> tuple[int, int]:
        state = read_state(self._state_path)
        known = state.ports if state and len(state.ports) == 2 else (None, None)
        if self._port is not None and not port_is_free(self._port):
            raise EmbeddedError(f"port {self._port} is taken by another program")
        port = self._port or _still_free(known[0]) or free_port()
        controller_port = _still_free(known[1])
        if controller_port is None or controller_port == port:
            controller_port = free_port(avoid=[port])
        return port, controller_port

    def _write_settings(self, ports: tuple[int, int]) -> None:
        settings = _SETTINGS.format(
            host=LOOPBACK, port=ports[0], controller_port=ports[1], data=self.folder / "data"
        )
        write_atomically(self._settings_path, settings)
        logging = _LOGGING.format(log=self._log_path, lifecycle=self._lifecycle_path)
        write_atomically(self.folder / "log4j2.xml", logging)

    def _format(self) -> None:
        """Prepare the data folder once; what a killed attempt left behind is discarded.

        The marker is written last, and a broker is only started after it: without the marker
        there are no data yet.
        """
        marker = self.folder / "formatted"
        if marker.exists():
            return
        shutil.rmtree(self.folder / "data", ignore_errors=True)
        cluster = _new_cluster_id()
        command = [
            *self._java("-Xmx128m", "-XX:TieredStopAtLevel=1"),
            "kafka.tools.StorageTool",
            "format",
            *("--cluster-id", cluster),
            *("--config", str(self._settings_path)),
        ]
        result = subprocess.run(
            command, capture_output=True, text=True, check=False, cwd="/", env={}, timeout=120
        )
        if result.returncode != 0:
            raise ServerStartError("Kafka", "formatting failed", result.stdout + result.stderr)
        write_atomically(marker, cluster)

    def _launch(self, ports: tuple[int, int]) -> Process:
        for log in (self._log_path, self._output_path):
            if log.exists():
                log.replace(log.with_suffix(".previous.log"))
        self._lifecycle_path.unlink(missing_ok=True)
        # A killed Java leaves the native libraries that it unpacked.
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._scratch.mkdir()
        heap = (f"-Xms{min(self._heap_mb, 256)}m", f"-Xmx{self._heap_mb}m")
        scratch = f"-Djava.io.tmpdir={self._scratch}"
        command = [*self._java(*heap, scratch), "kafka.Kafka", str(self._settings_path)]
        process = spawn(command, log=self._output_path, env={})
        write_state(self._state_path, ports, process)
        return process

    def _java(self, *options: str) -> list[str]:
        logging = self.folder / "log4j2.xml"
        return [
            str(java()),
            *options,
            "-XX:+ExitOnOutOfMemoryError",
            "-Djava.awt.headless=true",
            "-Dlog4j2.disableJmx=true",
            f"-Dlog4j2.configurationFile={logging}",
            *("-cp", class_path()),
        ]

    def _is_ready(self, process: Process, timeout_s: float) -> bool:
        """Wait until the broker serves; False if it ends before, or the time does."""
        port = self._ports_in_settings()[0]

        def settled() -> bool:
            return not process.running or (self._said_ready() and _answers(port))

        return poll(settled, timeout_s=timeout_s) and process.running

    def _said_ready(self) -> bool:
        try:
            return _READY in self._lifecycle_path.read_text(errors="replace")
        except FileNotFoundError:
            return False

    def _log_tails(self) -> str:
        return f"{tail(self._log_path)}\n{tail(self._output_path)}".strip()


def _new_cluster_id() -> str:
    """Return a random identifier as Kafka writes it: 16 bytes in 22 letters."""
    first, *rest = uuid.uuid4().bytes
    # With its highest bit clear the text cannot begin with a dash, which the command line of
    # Kafka's tool would take for an option.
    return urlsafe_b64encode(bytes([first & 0x7F, *rest])).rstrip(b"=").decode()


def _answers(port: int) -> bool:
    """Whether a broker replies on this port; one that was killed a moment ago does not."""
    # ApiVersions, version 0: length, API key, version, correlation id, no client id.
    request = struct.pack(">ihhih", 10, 18, 0, 7, -1)
    try:
        with socket.create_connection((LOOPBACK, port), timeout=2.0) as connection:
            connection.sendall(request)
            reply = connection.recv(8, socket.MSG_WAITALL)
    except OSError:
        return False
    return len(reply) == 8 and struct.unpack(">ii", reply)[1] == 7


def _still_free(port: int | None) -> int | None:
    return port if port is not None and port_is_free(port) else None
