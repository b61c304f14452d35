"""What ``up`` and ``status`` say of servers that moved, and of those that the shell names."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest
import typer
from typer.testing import CliRunner

from streams.commands import stack
from streams.config import Config
from streams.embedded import Endpoints, ServerStatus
from streams.ledger.database import reason_of
from tests.deployment import Deployment
from tests.test_commands_records import run as run_command

KAFKA, URL = "127.0.0.1:9001", "postgresql+psycopg://tollway:secret@127.0.0.1:9002/tollway"


def standing(*, running: bool = True, kafka: str = KAFKA) -> tuple[ServerStatus, ServerStatus]:
    pid = 7 if running else None
    return (
        ServerStatus(name="kafka", running=running, pid=pid, endpoint=kafka),
        ServerStatus(name="postgres", running=running, pid=pid, endpoint=URL),
    )


class Servers:
    """The embedded servers as the commands see them, before and after they are started."""

    def __init__(self, before: Any, after: Any) -> None:
        self.now, self._after = before, after
        self.given: dict[str, Any] = {}

    def status(self, _home: Path) -> Any:
        return self.now

    def up(self, _home: Path, **given: Any) -> Endpoints:
        self.given, self.now = given, self._after
        return Endpoints(kafka=self.now[0].endpoint, database_url=URL)


def run(
    monkeypatch: pytest.MonkeyPatch, servers: Servers, command: str, **settings: Any
) -> tuple[int, str, str]:
    monkeypatch.setattr(stack, "servers", servers)
    monkeypatch.setattr(stack, "_members", lambda kafka, app_id: f"{kafka} of {app_id}")
    app = typer.Typer()
    stack.register(app, after_up=())
    config = Config(home=Path("/nowhere"), **settings)
    done = CliRunner().invoke(app, [command], obj=config)
    return done.exit_code, done.stdout, done.stderr


def test_up_says_that_a_server_is_elsewhere_now(monkeypatch: pytest.MonkeyPatch) -> None:
    servers = Servers(standing(running=False), standing(kafka="127.0.0.1:9005"))
    code, out, err = run(monkeypatch, servers, "up")
    assert (code, out.splitlines()[0]) == (0, "TOLLWAY_KAFKA=127.0.0.1:9005")
    assert "kafka is at 127.0.0.1:9005 now: the port of 127.0.0.1:9001 was taken" in err
    assert "restart workers" in err
    assert "postgres" not in err


def test_up_says_nothing_where_all_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, Servers(standing(), standing()), "up")[2] == ""
    started = run(monkeypatch, Servers(standing(running=False), standing()), "up")
    assert started[2] == "starting; the first time downloads 45 MB\n"


@pytest.mark.parametrize("url", [URL, URL.replace("+psycopg", "")])
def test_what_up_printed_names_the_embedded_servers(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    printed = {"kafka": KAFKA, "database_url": url}
    servers = Servers(standing(running=False), standing())
    code, out, _ = run(monkeypatch, servers, "status", **printed)
    assert (code, out.split()) == (3, ["kafka", "stopped", "postgres", "stopped"])
    run(monkeypatch, servers, "up", **printed)
    assert servers.given == {"kafka": None, "database_url": None}
    code, out, _ = run(monkeypatch, servers, "status", **printed)
    assert code == 0 and f"running  pid 7  {KAFKA}" in out
    assert f"workers   not known: {KAFKA} of tollway" in out


def test_servers_of_the_users_own_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    servers = Servers(standing(running=False), standing(running=False))
    own = {"kafka": "broker.example:9092", "database_url": "postgresql://me:word@db.example/x"}
    code, out, _ = run(monkeypatch, servers, "status", **own)
    assert code == 0 and out.count("a server of your own") == 2 and "word" not in out
    assert run(monkeypatch, servers, "up", **own)[2] == ""
    assert servers.given == own


def test_a_broker_that_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    servers = Servers(standing(running=False), standing(running=False))
    monkeypatch.setattr(stack, "servers", servers)
    app = typer.Typer()
    stack.register(app, after_up=())
    config = Config(home=Path("/nowhere"), kafka="127.0.0.1:1", database_url=URL)
    done = CliRunner().invoke(app, ["status", "--json"], obj=config)
    assert json.loads(done.stdout)["at_work"] is None
    done = CliRunner().invoke(app, ["status"], obj=config)
    assert "workers   not known: Kafka at 127.0.0.1:1: " in done.stdout


@pytest.mark.kafka
@pytest.mark.postgres
async def test_status_says_who_is_at_work(deployment: Deployment) -> None:
    deadline = time.monotonic() + 60
    while True:
        found = json.loads(await asyncio.to_thread(run_command, deployment, "status", "--json"))[
            "at_work"
        ]
        assert found["workers"] >= 1 and found["sinks"] >= 1
        if found["waiting"] == 0:
            break
        assert time.monotonic() < deadline, found
    words = await asyncio.to_thread(run_command, deployment, "status")
    assert f"workers   {found['workers']}; requests that none is done with: " in words


def test_only_libpq_is_quoted_on_why_a_database_cannot_be_reached() -> None:
    away = psycopg.OperationalError("connection failed:\n  refused")
    assert reason_of(away) == "connection failed: refused"
    # It may show a piece of the address, password and all.
    assert reason_of(psycopg.ProgrammingError('invalid token "pa%word"')) == "ProgrammingError"
