"""How a worker ends where it cannot go on or cannot drain."""

from __future__ import annotations

import asyncio
import socket
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from streams import worker as module
from streams.__main__ import build_cli
from streams.faust_batches import EXIT_CODE
from streams.worker import NotDrainedError, Worker


def test_a_worker_that_cannot_drain_ends_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STOP_S", 0.02)
    told: list[object] = []

    async def stop() -> None:
        ended = asyncio.Event()

        def fatal(error: BaseException) -> None:
            told.append(error)
            ended.set()

        worker = Worker.__new__(Worker)
        worker.app = SimpleNamespace(  # type: ignore[assignment]
            request_stop=lambda: told.append("drain"), fatal=fatal
        )
        worker._stop()
        # Time to drain comes first.
        assert told == ["drain"]
        await ended.wait()

    asyncio.run(stop())
    error = told[1]
    assert isinstance(error, NotDrainedError)
    assert error.exit_code == EXIT_CODE and "is Kafka away?" in str(error)


def test_a_metrics_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        settings = {"TOLLWAY_KAFKA": "127.0.0.1:1", "TOLLWAY_METRICS_PORT": str(port)}
        done = CliRunner().invoke(build_cli("worker"), ["worker"], env=settings)
    assert done.exit_code == 2
    assert f"TOLLWAY_METRICS_PORT={port}: Address already in use" in done.output
    assert "Traceback" not in done.output
