"""End a test session's servers when the session ends, however it ends.

The session holds the other end of this program's standard input. That end closes when the
session closes it and also when the session is killed.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from streams.embedded import KafkaServer, PostgresServer


def main(root: Path) -> None:
    """Wait for the end of standard input, then end what runs below ``root`` and remove it."""
    sys.stdin.read()
    for folder in root.glob("kafka-*"):
        KafkaServer(folder).kill()
    for folder in root.glob("postgres-*"):
        PostgresServer(folder).stop("immediate")
    shutil.rmtree(root)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
