"""Waiting for a server: again and again, with pauses that are bounded, until told to stop."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from aiokafka.errors import KafkaConnectionError

from streams import patience
from streams.log import LogReader
from streams.patience import until_there
from streams.topic_facts import check_controller


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "PAUSE_S", 0.001)
    monkeypatch.setattr(patience, "PAUSE_MAX_S", 0.004)


async def test_a_call_is_made_until_the_server_answers(caplog: pytest.LogCaptureFixture) -> None:
    calls = 0

    async def call() -> None:
        nonlocal calls
        calls += 1
        if calls < 5:
            raise KafkaConnectionError("nobody listens\nat all")

    assert await until_there(call, what="Kafka", stop=asyncio.Event())
    assert calls == 5
    told = [record.getMessage() for record in caplog.records]
    assert told[0] == ("Kafka is away, trying again in 0.0 s: KafkaConnectionError: nobody listens")
    assert len(told) == 4


async def test_pauses_grow_and_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float | None] = []
    wait = asyncio.wait

    async def noting(tasks: set[asyncio.Task[object]], **how: float | None) -> object:
        if "timeout" in how:
            pauses.append(how["timeout"])
        return await wait(tasks, **how)  # type: ignore[call-overload]

    async def call() -> None:
        if len(pauses) < 5:
            raise TimeoutError

    monkeypatch.setattr(asyncio, "wait", noting)
    assert await until_there(call, what="Kafka", stop=asyncio.Event())
    assert pauses == [0.001, 0.002, 0.004, 0.004, 0.004]


async def test_other_errors_are_raised() -> None:
    async def call() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await until_there(call, what="Kafka", stop=asyncio.Event())


@pytest.mark.parametrize("silent", [True, False], ids=["silent", "refusing"])
async def test_who_is_told_to_stop_waits_no_longer(*, silent: bool) -> None:
    stop, called = asyncio.Event(), asyncio.Event()

    async def call() -> None:
        called.set()
        if silent:
            await asyncio.Event().wait()
        raise TimeoutError

    waiting = asyncio.create_task(until_there(call, what="Kafka", stop=stop))
    await called.wait()
    stop.set()
    assert await asyncio.wait_for(waiting, 5) is False


async def test_a_broker_that_knows_no_controller_yet_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(patience, "PAUSE_S", 0.001)
    asked = 0

    async def update() -> None:
        nonlocal asked
        asked += 1
        cluster.controller = None if asked < 3 else "broker 1"

    cluster = SimpleNamespace(controller="of another broker, before")
    client = SimpleNamespace(cluster=cluster, force_metadata_update=update)
    assert await until_there(lambda: check_controller(client), what="Kafka", stop=asyncio.Event())
    assert asked == 3


async def test_a_broker_that_is_there_knows_its_controller(kafka: str) -> None:
    reader = LogReader(kafka)
    await reader.start()
    try:
        await check_controller(reader.client)
    finally:
        await reader.stop()
