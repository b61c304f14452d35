"""The generator's own log: what it was about to send, and what it was told of it.

A record is noted and on disk before it is sent. The checker reads this log and the topics, never
what the system under test says of itself.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

Place = tuple[str, int, int]
"""Topic, partition, offset."""


@dataclass(slots=True, kw_only=True)
class Sent:
    """One record that was sent, perhaps: ``place`` is None where no acknowledgement came.

    ``kind`` is ``good``, ``copy``, ``conflict`` or ``poison:<reason>``; for poison the reason is
    that with which it must be refused.
    """

    topic: str
    key: str
    kind: str
    request_id: str
    sha256: str
    failed: bool = False
    place: Place | None = None


class OracleLog:
    """Writes the log; :meth:`sync` returns when all of it is on disk."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", buffering=1 << 16)
        self._serial = 0
        self._topics: dict[int, str] = {}

    def intend(self, topic: str, key: bytes, value: bytes, kind: str, request_id: str) -> int:
        """Note a record that is about to be sent; return its number."""
        self._serial += 1
        self._topics[self._serial] = topic
        digest = sha256(value).hexdigest()
        # Keys of poison are no text.
        self._write(["send", self._serial, topic, key.decode("latin-1"), kind, request_id, digest])
        return self._serial

    def acknowledged(self, serial: int, partition: int, offset: int) -> None:
        """Note where the broker says that it lies."""
        self._write(["ack", serial, self._topics.pop(serial), partition, offset])

    def unknown(self, serial: int) -> None:
        """Note that no acknowledgement came: it may lie in the topic or not."""
        self._topics.pop(serial)
        self._write(["unknown", serial])

    def sync(self) -> None:
        """Bring everything to disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Bring everything to disk and close the file."""
        self.sync()
        self._file.close()

    def _write(self, fields: list[object]) -> None:
        self._file.write(json.dumps(fields) + "\n")


def read_log(path: Path) -> list[Sent]:
    """Return everything that was sent, in the order in which it was noted."""
    sent: dict[int, Sent] = {}
    for what, serial, *fields in _lines(path):
        if what == "send":
            topic, key, kind, request_id, digest = fields
            sent[serial] = Sent(
                topic=topic, key=key, kind=kind, request_id=request_id, sha256=digest
            )
        elif what == "ack":
            topic, partition, offset = fields
            sent[serial].place = (topic, partition, offset)
        else:
            sent[serial].failed = True
    return list(sent.values())


def _lines(path: Path) -> Iterator[list[object]]:
    with path.open() as file:
        for line in file:
            yield json.loads(line)
