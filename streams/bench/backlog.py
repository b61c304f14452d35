"""Backlogs on a broker, and programs that are timed while they work them off.

Rates come from the times at which the broker appended what a program wrote (LogAppendTime),
between the tenth and the ninth tenth of it: a program's start is not counted, and nobody has to
ask the broker often while it works.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from streams.bench.programs import Program, cpu_seconds
from streams.bench.workload import Value, by_partition
from streams.log import LogReader, RecordCount
from streams.publisher import Outbox, make_producer

DEADLINE_S = 300.0
LOW, HIGH = 0.1, 0.9
_POLL_S = 0.1

Progress = Callable[[], Awaitable[int]]


async def create_topics(kafka: str, names: Sequence[str], *, partitions: int) -> None:
    """Create plain topics whose records carry the broker's time."""
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    try:
        await admin.create_topics(
            [
                NewTopic(
                    name,
                    num_partitions=partitions,
                    replication_factor=1,
                    topic_configs={"message.timestamp.type": "LogAppendTime"},
                )
                for name in names
            ]
        )
    finally:
        await admin.close()


async def produce(kafka: str, topic: str, values: Sequence[Value], *, partitions: int) -> None:
    """Write a backlog, every record to the partition that its key's hash gives."""
    producer = make_producer(kafka)
    await producer.start()
    try:
        for number, part in by_partition(values, partitions).items():
            outbox = Outbox(producer, topic, number)
            await outbox.send(None, [v for _, v in part], keys=[k for k, _ in part])
            await outbox.flush()
    finally:
        await producer.stop()


class Ends(LogReader):
    """Tells how many records a topic holds, and when its last ones were appended."""

    def __init__(self, kafka: str, *, partitions: int) -> None:
        super().__init__(kafka)
        self._numbers = range(partitions)
        self._counts: dict[str, RecordCount] = {}

    async def __aenter__(self) -> Ends:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    async def ends(self, topic: str) -> dict[int, int]:
        """Return the offset after the last record of every partition."""
        return {number: (await self.bounds(topic, number))[1] for number in self._numbers}

    async def total(self, topic: str) -> int:
        """Return the sum of the end offsets: the records, and the markers of owners."""
        return await self.count(topic, self._numbers)

    async def records(self, topic: str) -> int:
        """Return how many records there are; they are read, each only once."""
        if topic not in self._counts:
            self._counts[topic] = RecordCount(self, topic, self._numbers)
        return await self._counts[topic].read()

    async def append_times(self, topic: str, since: dict[int, int]) -> list[int]:
        """Return the times in ms of all records from these offsets on, in ascending order."""
        times: list[int] = []
        for number, end in (await self.ends(topic)).items():
            async for records in self.read(topic, number, since[number], end):
                times += [record.timestamp for record in records]
        return sorted(times)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How fast a program was, and the processor seconds per million records.

    ``cpu_s`` and ``broker_cpu_s`` are None where the work was over before it could be told.
    """

    per_s: float
    cpu_s: float | None
    broker_cpu_s: float | None


async def timed(
    program: Program, *, ends: Ends, topic: str, records: int, broker_pid: int | None,
    progress: Progress | None = None,
) -> Timing:  # fmt: skip
    """Run a program until it has written ``records`` to ``topic``.

    With ``progress``, which counts other work that is to be done as often, it runs until both are
    done, and the rate is that of the slower one.
    """
    since = await ends.ends(topic)
    begun = sum(since.values())
    marks: list[tuple[int, float, float, float]] = []
    with program:
        deadline = time.monotonic() + DEADLINE_S
        while not marks or marks[-1][0] < records:
            await asyncio.sleep(_POLL_S)
            done = await ends.total(topic) - begun
            if progress is not None:
                done = min(done, await progress())
            now = time.monotonic()
            marks.append((done, now, cpu_seconds(program.pid), cpu_seconds(broker_pid)))
            program.check()
            if now > deadline:
                program.fail(f"did {done} of {records} records in {DEADLINE_S} s")
        # The ends count an owner's markers, too.
        while len(times := await ends.append_times(topic, since)) < records:
            program.check()
            if time.monotonic() > deadline:
                program.fail(f"did {len(times)} of {records} records in {DEADLINE_S} s")
            await asyncio.sleep(_POLL_S)
    middle = [mark for mark in marks if LOW * records <= mark[0] <= HIGH * records]
    per_record = _per_record(middle, 1)
    # The other work leaves no times on the broker: its rate is of what was seen while polling.
    seen = 0.0 if progress is None or per_record is None else 1.0 / per_record
    per_s = seen or rate(times)
    cpu_s, broker_cpu_s = _per_record(middle, 2), _per_record(middle, 3)
    return Timing(
        per_s=per_s,
        cpu_s=None if cpu_s is None else cpu_s * 1e6,
        broker_cpu_s=None if broker_cpu_s is None else broker_cpu_s * 1e6,
    )


def _per_record(marks: Sequence[tuple[int, float, float, float]], column: int) -> float | None:
    """Return by how much a column grew per record from the first mark to the last."""
    if not marks or marks[0][0] == marks[-1][0]:
        return None
    return (marks[-1][column] - marks[0][column]) / (marks[-1][0] - marks[0][0])


def rate(times_ms: Sequence[int]) -> float:
    """Return the records per second of the middle of a run.

    Examples
    --------
    >>> rate([1_000 + 2 * n for n in range(100)])
    500.0
    """
    low, high = int(LOW * len(times_ms)), int(HIGH * len(times_ms))
    return 1_000 * (high - low) / max(times_ms[high] - times_ms[low], 1)
