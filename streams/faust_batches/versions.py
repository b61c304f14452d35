"""Refuse to run on other versions than the ones whose private parts this package relies on."""

from __future__ import annotations

from importlib.metadata import version

from streams.faust_batches.errors import UnsupportedVersionError

PINNED = {"faust-streaming": "0.15.3", "mode-streaming": "0.7.1", "aiokafka": "0.14.0"}


def check_versions(pinned: dict[str, str] = PINNED) -> None:
    """Raise :class:`UnsupportedVersionError` unless exactly the pinned versions are installed."""
    for library, needed in pinned.items():
        installed = version(library)
        if installed != needed:
            raise UnsupportedVersionError(library, installed, needed)


check_versions()
