"""The supervisor on small programs of its own: what is started anew, what is not, how it ends."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from streams.supervise import RESTARTS_MAX, Supervisor, SupervisorError

COMMAND = (sys.executable, "-c")
SLEEP = "import time; print('up', flush=True); time.sleep(60)"
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    "print('up', flush=True); time.sleep(60)"
)


async def until(condition: Callable[[], bool], *, timeout_s: float = 20.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.02)


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def ups(log: Path) -> int:
    return log.read_text().count("up") if log.exists() else 0


async def test_a_killed_process_is_started_again_and_stopped_at_the_end(tmp_path):
    async with Supervisor(tmp_path / "logs", {}, command=COMMAND) as supervisor:
        child = await supervisor.start("sleeper", SLEEP)
        await until(lambda: ups(child.log) == 1)
        killed = supervisor.kill("sleeper")
        await until(lambda: ups(child.log) == 2)
        second = child.pid
        assert second not in (None, killed)
        assert (child.restarts, child.exits) == (1, [-9])
        supervisor.check()
    assert second is not None
    assert not lives(killed)
    assert not lives(second)
    assert child.pid is None
    assert child.exits == [-9, -15]


async def test_code_70_is_a_restart_until_it_is_too_often(tmp_path):
    async with Supervisor(tmp_path, {}, command=COMMAND) as supervisor:
        child = await supervisor.start("failing", "raise SystemExit(70)")
        with pytest.raises(SupervisorError, match=f"code 70 after {RESTARTS_MAX} restarts"):
            while True:
                supervisor.check()
                await asyncio.sleep(0.02)
    assert child.exits == [70] * (RESTARTS_MAX + 1)


@pytest.mark.parametrize("code", [0, 1, 2])
async def test_any_other_end_is_for_good(tmp_path, code):
    async with Supervisor(tmp_path, {}, command=COMMAND) as supervisor:
        child = await supervisor.start("ending", f"raise SystemExit({code})")
        await until(lambda: child.exits == [code])
        with pytest.raises(SupervisorError, match=f"ending ended with code {code}"):
            supervisor.check()
        with pytest.raises(SupervisorError, match="not running"):
            supervisor.kill("ending")
    assert child.restarts == 0


async def test_one_that_does_not_end_is_killed(tmp_path):
    supervisor = Supervisor(tmp_path, {}, command=COMMAND)
    child = await supervisor.start("stubborn", STUBBORN)
    await until(lambda: ups(child.log) == 1)
    await supervisor.stop(timeout_s=0.2)
    assert child.exits == [-9]


async def test_settings_and_environment_reach_the_process(tmp_path, monkeypatch):
    monkeypatch.setenv("INHERITED", "from-outside")
    program = "import os; print(os.environ['TOLLWAY_APP_ID'], os.environ['INHERITED'], flush=True)"
    settings = {"TOLLWAY_APP_ID": "given"}
    async with Supervisor(tmp_path, settings, command=COMMAND) as supervisor:
        child = await supervisor.start("printer", program)
        await until(lambda: child.exits == [0])
    assert child.log.read_text().split() == ["given", "from-outside"]
