"""Checkpoints take turns: what is written is the partition as it is when its turn has come."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from streams.worker import Worker


class Opened:
    """A partition that notes what is asked of it."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    async def tick(self) -> None:
        self.calls.append("tick")

    async def checkpoint(self) -> None:
        self.calls.append("checkpoint")


@pytest.fixture
def worker() -> Any:
    """Return a worker that was never started and owns every partition."""
    made: Any = Worker.__new__(Worker)
    made.partitions = {}
    made.app = SimpleNamespace(owns=lambda topic, number: True)
    return made


async def test_a_partition_that_was_opened_anew_meanwhile_is_not_written_as_it_was(
    worker: Any,
) -> None:
    former, present = Opened(), Opened()
    worker.partitions[3] = former
    turn = asyncio.create_task(worker._checkpoint(3, after_s=0.01))
    await asyncio.sleep(0)
    worker.partitions = {3: present}
    await turn
    assert former.calls == []
    assert present.calls == ["tick", "checkpoint"]


async def test_a_partition_that_was_let_go_meanwhile_is_not_written(worker: Any) -> None:
    former = Opened()
    worker.partitions[3] = former
    turn = asyncio.create_task(worker._checkpoint(3, after_s=0.01))
    await asyncio.sleep(0)
    worker.partitions.clear()
    await turn
    assert former.calls == []
