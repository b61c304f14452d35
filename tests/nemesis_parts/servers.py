"""The broker of the nemesis: one listener for each link, so that every program has its own way."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from streams.embedded import KafkaServer
from streams.embedded.processes import LOOPBACK, write_atomically


class LinkedKafka(KafkaServer):
    """A broker whose clients stay on the link by which they came.

    A client connects to every broker at the address that the broker advertises. For each name in
    ``ways`` there is a listener on the first port that advertises the second, which is the link's.
    """

    def __init__(self, folder: Path, ways: Mapping[str, tuple[int, int]]) -> None:
        super().__init__(folder)
        self._ways = ways

    def _write_settings(self, ports: tuple[int, int]) -> None:
        super()._write_settings(ports)
        added = {
            "listeners": [f"{n}://{LOOPBACK}:{port}" for n, (port, _) in self._ways.items()],
            "advertised.listeners": [
                f"{n}://{LOOPBACK}:{port}" for n, (_, port) in self._ways.items()
            ],
            "listener.security.protocol.map": [f"{n}:PLAINTEXT" for n in self._ways],
        }
        lines = []
        for line in self._settings_path.read_text().splitlines():
            name, _, value = line.partition("=")
            # Network threads are counted by listener.
            value = "1" if name == "num.network.threads" else value
            lines.append(f"{name}={','.join([value, *added.get(name, [])])}")
        write_atomically(self._settings_path, "\n".join(lines) + "\n")

    def _ports_in_settings(self) -> tuple[int, int]:
        lines = self._settings_path.read_text().splitlines()
        listeners = next(line for line in lines if line.startswith("listeners=")).split(",")
        port, controller_port = (int(part.rsplit(":", 1)[1]) for part in listeners[:2])
        return port, controller_port
