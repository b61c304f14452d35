"""The transport on a real broker: what is delivered, counted and committed, whatever happens."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaConnectionError
from faust.types import TP

from streams.faust_batches import (
    EXIT_CODE,
    BatchApp,
    PartitionNotOwnedError,
    UnsupportedVersionError,
    ValueTooLargeError,
)
from streams.faust_batches.table import REIGN_KEY
from streams.faust_batches.transport import BatchProducerBuffer
from streams.faust_batches.versions import check_versions

PARTITIONS = 4
APP = Path(__file__).with_name("faust_batch_app.py")
ROOT = APP.parent.parent


def until(condition: Callable[[], Any], what: str, deadline_s: float = 60.0) -> Any:
    """Return the first true value of the condition; fail after the deadline."""
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.1)
    pytest.fail(f"not within {deadline_s:g} s: {what}")


class Bench:
    """A topic of numbers, workers that count it, and the journal of what they did."""

    def __init__(self, kafka: str, name: str, folder: Path) -> None:
        self.kafka, self.name, self.folder = kafka, name, folder
        self.log = folder / "journal"
        self.antidote = folder / "antidote"
        self.produced: Counter[int] = Counter()
        self.workers: list[subprocess.Popen[bytes]] = []
        asyncio.run(self._create_topic())

    async def _create_topic(self) -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.kafka)
        await admin.start()
        await admin.create_topics([NewTopic(self.name, PARTITIONS, 1)])
        await admin.close()

    def start(self, **options: Any) -> subprocess.Popen[bytes]:
        """Start a worker."""
        arguments = {
            "broker": self.kafka,
            "app": self.name,
            "topic": self.name,
            "log": self.log,
            "antidote": self.antidote,
            "partitions": PARTITIONS,
            **options,
        }
        flags = [
            f"--{key.replace('_', '-')}" + ("" if value is True else f"={value}")
            for key, value in arguments.items()
        ]
        number = len(self.workers)
        with (self.folder / f"worker-{number}.txt").open("wb") as output:
            worker = subprocess.Popen(
                [sys.executable, str(APP), *flags],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.workers.append(worker)
        return worker

    def end(self) -> None:
        """Kill what still runs."""
        for worker in self.workers:
            if worker.poll() is None:
                worker.kill()
            worker.wait()

    def stop(self, worker: subprocess.Popen[bytes]) -> int:
        """Stop a worker in good order."""
        worker.send_signal(signal.SIGTERM)
        return worker.wait(timeout=60)

    def feed(self, count: int, *, partition: int | None = None) -> None:
        """Produce numbers, to one partition or to all in turn."""
        asyncio.run(self._feed(count, partition))

    async def _feed(self, count: int, partition: int | None) -> None:
        producer = AIOKafkaProducer(bootstrap_servers=self.kafka, linger_ms=5)
        await producer.start()
        await self._produce(producer, count, partition)
        await producer.stop()

    async def _produce(self, producer: Any, count: int, partition: int | None = None) -> None:
        sent = []
        for number in range(count):
            to = number % PARTITIONS if partition is None else partition
            value = str(self.produced[to]).encode()
            self.produced[to] += 1
            sent.append(await producer.send(self.name, value, partition=to))
        await asyncio.gather(*sent)

    @contextmanager
    def feeding(self) -> Iterator[None]:
        """Produce about 600 numbers a second in the background."""
        enough = threading.Event()

        async def feed() -> None:
            producer = AIOKafkaProducer(bootstrap_servers=self.kafka, linger_ms=5)
            await producer.start()
            while not enough.is_set():
                await self._produce(producer, 15 * PARTITIONS)
                await asyncio.sleep(0.1)
            await producer.stop()

        thread = threading.Thread(target=asyncio.run, args=(feed(),))
        thread.start()
        try:
            yield
        finally:
            enough.set()
            thread.join()

    def journal(self, event: str | None = None) -> list[dict[str, Any]]:
        """Return what the workers wrote."""
        text = self.log.read_text() if self.log.exists() else ""
        lines = [json.loads(line) for line in text.splitlines()]
        return [line for line in lines if event in (None, line["event"])]

    def counted(self) -> bool:
        """Return whether every record of the topic was counted by somebody."""
        ends: Counter[int] = Counter()
        for line in self.journal("counted"):
            ends[line["partition"]] = max(ends[line["partition"]], line["next"])
        return all(ends[p] >= n for p, n in self.produced.items())

    def deliveries(self) -> dict[int, Counter[int]]:
        """Return how often each offset of each partition reached an agent."""
        seen: dict[int, Counter[int]] = {p: Counter() for p in range(PARTITIONS)}
        for line in self.journal("batch"):
            seen[line["partition"]].update(range(line["first"], line["next"]))
        return seen

    def assert_each_delivered_once(self) -> None:
        """Assert that no record was skipped and none was delivered again."""
        for partition, seen in self.deliveries().items():
            expected = Counter(range(self.produced[partition]))
            assert not expected - seen, f"lost in {partition}: {sorted(expected - seen)[:10]}"
            assert not seen - expected, f"again in {partition}: {sorted(seen - expected)[:10]}"

    def assert_each_counted_once(self) -> None:
        """Start a last worker, and assert that the restored values are exact."""
        before = len(self.journal("assigned"))
        worker = self.start()
        until(lambda: len(self.journal("assigned")) >= before + PARTITIONS, "last assignment")
        # What a killed worker had counted and not written yet is in the journal too.
        whole = {p: n for p, n in self.produced.items() if n}
        until(lambda: self.committed() == whole, "everything counted and written")
        self.stop(worker)
        final = {line["partition"]: line for line in self.journal("revoked")[-PARTITIONS:]}
        for partition, state in final.items():
            count = self.produced[partition]
            got = (state["next"], state["count"], state["sum"])
            assert got == (count, count, count * (count - 1) // 2), f"partition {partition}"
        assert sorted(final) == list(range(PARTITIONS))
        assert self.committed() == {p: n for p, n in self.produced.items() if n}

    def committed(self) -> dict[int, int]:
        """Return the group's committed offsets."""

        async def ask() -> dict[int, int]:
            admin = AIOKafkaAdminClient(bootstrap_servers=self.kafka)
            await admin.start()
            try:
                offsets = await admin.list_consumer_group_offsets(self.name)
            finally:
                await admin.close()
            return {tp.partition: found.offset for tp, found in offsets.items()}

        return asyncio.run(ask())

    def generations(self) -> int:
        """Return how many generations of the group owned partitions."""
        texts = [path.read_text() for path in self.folder.glob("worker-*.txt")]
        return len({n for text in texts for n in re.findall(r"in generation (\d+)", text)})

    def assigned_pids(self) -> dict[int, int]:
        """Return the process that each partition was last assigned to."""
        return {line["partition"]: line["pid"] for line in self.journal("assigned")}


@pytest.fixture
def bench(kafka: str, topic_prefix: str, tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(kafka, topic_prefix, tmp_path)
    yield bench
    bench.end()


@pytest.mark.kafka
def test_no_record_reaches_an_agent_before_the_seek(bench: Bench) -> None:
    """With Faust's own recovery the backlog came twice, and the commit stopped moving."""
    bench.feed(1_000)
    first = bench.start(slow_offsets=1.0, batch=50, own_acks=True)
    until(bench.counted, "backlog counted")
    bench.start(slow_offsets=1.0, batch=50, own_acks=True)
    until(lambda: len(set(bench.assigned_pids().values())) == 2, "both own partitions")
    bench.feed(1_000)
    until(bench.counted, "second half counted")
    until(lambda: bench.committed() == bench.produced, "all committed")
    bench.assert_each_delivered_once()
    assert bench.stop(first) == 0


@pytest.mark.kafka
def test_a_partition_given_up_is_committed_first(bench: Bench) -> None:
    """With Faust's own consumer a rebalance forgets the acks before it commits them."""
    bench.feed(1_000)
    bench.start(commit_interval=60, own_acks=True)
    until(bench.counted, "counted")
    assert bench.committed() == {}
    second = bench.start(commit_interval=60, own_acks=True)
    until(lambda: len(set(bench.assigned_pids().values())) == 2, "both own partitions")
    assert bench.committed() == bench.produced
    bench.feed(400)
    until(bench.counted, "the rest counted")
    assert bench.stop(second) == 0
    until(lambda: len(set(bench.assigned_pids().values())) == 1, "one owns all")
    bench.assert_each_delivered_once()


@pytest.mark.kafka
def test_rebalances_under_load_neither_lose_nor_repeat(bench: Bench) -> None:
    """Faust's consumer thread reads a set that the main thread empties meanwhile."""
    with bench.feeding():
        workers = [bench.start(slow_offsets=0.5, batch=50) for _ in range(3)]
        until(lambda: len(set(bench.assigned_pids().values())) == 3, "all own partitions")
        for leaving in workers[:2]:
            bench.stop(leaving)
            until(lambda p=leaving.pid: p not in bench.assigned_pids().values(), "given up")
    until(bench.counted, "everything counted")
    assert bench.generations() >= 3
    bench.assert_each_delivered_once()
    bench.end()
    bench.assert_each_counted_once()


@pytest.mark.kafka
def test_killed_workers_lose_and_repeat_no_effect(bench: Bench) -> None:
    with bench.feeding():
        bench.start(batch=50)
        until(lambda: len(bench.journal("assigned")) >= PARTITIONS, "first assignment")
        for _ in range(2):
            bench.start(batch=50)
            running = [w for w in bench.workers if w.poll() is None]
            pids = {w.pid for w in running}
            until(lambda p=pids: set(bench.assigned_pids().values()) == p, "both own partitions")
            counted = len(bench.journal("counted"))
            until(lambda n=counted: len(bench.journal("counted")) > n + 20, "both at work")
            running[0].kill()
            running[0].wait()
    until(bench.counted, "everything counted")
    bench.end()
    delivered = bench.deliveries()
    assert all(len(delivered[p]) == bench.produced[p] for p in range(PARTITIONS))
    bench.assert_each_counted_once()


@pytest.mark.kafka
def test_a_worker_that_slept_does_not_overwrite_its_successor(bench: Bench) -> None:
    bench.feed(400)
    # It has counted, but will not write its counts before it is put to sleep.
    sleeper = bench.start(flush_interval=60, session=2.0)
    until(bench.counted, "counted")
    sleeper.send_signal(signal.SIGSTOP)
    bench.start(session=2.0)
    until(lambda: sleeper.pid not in bench.assigned_pids().values(), "taken over")
    bench.feed(400)
    until(bench.counted, "counted by the successor")
    until(lambda: bench.committed() == bench.produced, "all committed")
    sleeper.send_signal(signal.SIGCONT)
    until(lambda: sleeper.pid in bench.assigned_pids().values(), "back in the group")
    assert "unflushed" in (bench.folder / "worker-0.txt").read_text()
    bench.end()
    bench.assert_each_counted_once()


def is_asleep(process: subprocess.Popen[bytes]) -> bool:
    """Return whether a process was stopped by SIGSTOP."""
    stat = Path(f"/proc/{process.pid}/stat").read_text()
    return stat.rpartition(")")[2].split()[0] == "T"


@pytest.mark.kafka
def test_what_a_worker_writes_after_its_successor_does_not_count(bench: Bench) -> None:
    lullaby = bench.folder / "lullaby"
    bench.feed(400)
    sleeper = bench.start(session=2.0, lullaby=lullaby)
    until(lambda: bench.committed() == bench.produced, "counted and committed")
    lullaby.touch()
    bench.feed(400)
    # It was still a member when it looked; it wakes up as one that has been replaced.
    until(lambda: is_asleep(sleeper), "asleep before its write")
    successor = bench.start(session=2.0)
    until(lambda: sleeper.pid not in bench.assigned_pids().values(), "taken over")
    bench.feed(400)
    until(lambda: bench.committed() == bench.produced, "all written and committed")
    successor.kill()
    successor.wait()
    sleeper.send_signal(signal.SIGCONT)
    assert sleeper.wait(timeout=60) == EXIT_CODE
    assert "ChangelogOverlapError" in (bench.folder / "worker-0.txt").read_text()
    bench.assert_each_counted_once()


@pytest.mark.kafka
def test_a_worker_covers_what_a_former_owner_writes_and_yields_to_a_later_one(
    bench: Bench,
) -> None:
    bench.feed(40)
    worker = bench.start()
    until(lambda: bench.committed() == bench.produced, "counted and committed")
    asyncio.run(_write_to_table(bench, b"state", [("reign", b"-1")]))
    bench.feed(40)
    until(lambda: bench.committed() == bench.produced, "counted and committed")
    assert "wrote 1 keys late" in (bench.folder / "worker-0.txt").read_text()
    asyncio.run(_write_to_table(bench, REIGN_KEY, []))
    bench.feed(40)
    assert worker.wait(timeout=60) == EXIT_CODE
    assert "ChangelogOverlapError" in (bench.folder / "worker-0.txt").read_text()
    # It had counted more than it could write.
    again = bench.start()
    until(lambda: bench.committed() == bench.produced, "counted again and committed")
    assert bench.stop(again) == 0
    bench.assert_each_counted_once()


async def _write_to_table(bench: Bench, key: bytes, headers: list[tuple[str, bytes]]) -> None:
    """Write an old value to every partition of the table, as another worker."""
    async with AIOKafkaProducer(bootstrap_servers=bench.kafka) as producer:
        for partition in range(PARTITIONS):
            old = json.dumps({"next": 3, "count": 3, "sum": 3}).encode()
            await producer.send_and_wait(
                f"{bench.name}-counts-changelog", old, key=key, partition=partition,
                headers=headers,
            )  # fmt: skip


async def test_values_of_a_former_reign_are_kept_apart() -> None:
    table = BatchApp("reigns", broker="kafka://127.0.0.1:1").checkpoint_table("t", partitions=1)
    table.open_partitions({0})

    def restore(*records: tuple[int, bytes, bytes | None, int | None]) -> None:
        table.restore(0, [
            SimpleNamespace(
                offset=offset, key=key, value=value,
                headers=() if reign is None else (("reign", b"%d" % reign),),
            )
            for offset, key, value, reign in records
        ])  # fmt: skip

    restore((0, b"a", b"old", None), (1, REIGN_KEY, b"", None), (2, b"a", b"first", 1))
    restore((3, REIGN_KEY, b"", None), (4, b"a", b"second", 3), (5, b"a", b"late", 1))
    restore((6, b"b", b"late", 1), (7, b"c", b"late", 1), (8, b"c", b"better", 3))
    restore((9, b"d", b"late", None), (10, b"d", None, 3), (11, b"a", None, 1))
    restore((12, b"d", b"late", 1))
    assert table.values(0) == {b"a": b"second", b"c": b"better"}
    # What was valid of b has been compacted away; d was deleted in good order.
    assert table.late_values(0) == {b"b": b"late"}


@pytest.mark.kafka
def test_an_exception_in_an_agent_ends_the_process_and_acknowledges_nothing(bench: Bench) -> None:
    bench.feed(10, partition=1)
    asyncio.run(_send(bench, [(b"poison", [])]))
    worker = bench.start(own_acks=True, batch=5)
    assert worker.wait(timeout=60) == EXIT_CODE
    assert "ValueError: poison" in (bench.folder / "worker-0.txt").read_text()
    assert bench.committed().get(1, 0) <= 10
    bench.antidote.touch()
    again = len(bench.journal())
    bench.start(own_acks=True, batch=5)
    until(lambda: bench.committed().get(1) == 11, "read again and committed")
    assert any(line.get("next") == 11 for line in bench.journal("counted")[-2:])
    assert any(line["event"] == "batch" for line in bench.journal()[again:])


async def _send(bench: Bench, records: list[tuple[bytes, list[tuple[str, bytes]]]]) -> None:
    """Produce to partition 1, each record in a transaction, which leaves a marker behind it."""
    producer = AIOKafkaProducer(
        bootstrap_servers=bench.kafka, transactional_id=f"{bench.name}-{len(records)}"
    )
    await producer.start()
    for value, headers in records:
        async with producer.transaction():
            await producer.send(bench.name, value, partition=1, headers=headers)
    await producer.stop()


@pytest.mark.kafka
def test_gaps_headers_and_the_last_batch_of_an_idle_partition(bench: Bench) -> None:
    asyncio.run(_send(bench, [(b"1", [("traceparent", b"x")]), (b"2", [("a", b""), ("b", b"")])]))
    worker = bench.start(batch=1, own_acks=True)
    # Offsets 0 and 2 are records, 1 and 3 markers; nothing follows to push the commit.
    until(lambda: bench.committed() == {1: 3}, "the last batch committed")
    assert [(b["first"], b["next"], b["headers"]) for b in bench.journal("batch")] == [
        (0, 1, 1),
        (2, 3, 2),
    ]
    bench.stop(worker)
    state = next(line for line in bench.journal("revoked") if line["partition"] == 1)
    assert (state["next"], state["count"], state["sum"]) == (3, 2, 3)


@pytest.mark.kafka
def test_batches_are_bounded_and_of_a_partition_with_enough_waiting_none_is_fetched(
    bench: Bench,
) -> None:
    bench.feed(3_000)
    bench.start(batch=100, work=0.05)
    until(bench.counted, "counted")
    counted = bench.journal("counted")
    assert max(line["size"] for line in counted) == 100
    assert 0 < max(line["waiting"] for line in counted) < 200


@pytest.mark.kafka
async def test_life_of_a_partition_and_its_table(kafka: str, topic_prefix: str) -> None:
    bench_topic = f"{topic_prefix}-source"
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    await admin.create_topics([NewTopic(bench_topic, 1, 1)])
    await admin.close()
    producer = AIOKafkaProducer(bootstrap_servers=kafka)
    await producer.start()
    for number in range(6):
        await producer.send_and_wait(bench_topic, str(number).encode(), partition=0)
    await producer.stop()

    async def live(begin: int | None, change: dict[bytes, bytes | None]) -> list[Any]:
        events: list[Any] = []
        app = BatchApp(topic_prefix, broker=f"kafka://{kafka}", broker_session_timeout=3.0)
        table = app.checkpoint_table("values", partitions=1)
        plain = app.Table("plain", partitions=1, default=int, key_type=str, value_type=int)
        source = TP(bench_topic, 0)

        async def on_assigned(partitions: frozenset[TP]) -> dict[TP, int] | None:
            events.append(("assigned", sorted(partitions), table.values(0), dict(plain.items())))
            return None if begin is None else {source: begin}

        async def before_commit(partitions: frozenset[TP]) -> None:
            events.append("before_commit")
            await table.put(0, change)

        async def on_revoked(partitions: frozenset[TP]) -> None:
            events.append(("revoked", table.values(0)))

        app.on_assigned, app.before_commit = on_assigned, before_commit
        app.on_revoked = on_revoked

        @app.batch_agent(app.batch_topic(bench_topic), name="tests.live")
        async def agent(batches: Any) -> None:
            async for batch in batches:
                events.append(("batch", batch.first_offset, batch.next_offset))
                plain["records"] += len(batch)
                if batch.next_offset == 6:
                    app.request_stop()

        with pytest.raises(PartitionNotOwnedError):
            await table.put(0, {b"early": b""})
        with pytest.raises(ValueTooLargeError):
            await table.put(0, {b"small": b"", b"large": bytes(900_001)})
        await asyncio.wait_for(app.run(), 60)
        with pytest.raises(PartitionNotOwnedError):
            table.values(0)
        return events

    tp = TP(bench_topic, 0)
    large = bytes(899_000)
    assert await live(4, {b"a": b"1", b"b": large}) == [
        ("assigned", [tp], {}, {}),
        ("batch", 4, 6),
        "before_commit",
        ("revoked", {b"a": b"1", b"b": large}),
    ]
    # Committed is 6: without an offset from the hook, nothing would be read.
    assert await live(0, {b"a": None, b"c": b"3"}) == [
        ("assigned", [tp], {b"a": b"1", b"b": large}, {"records": 2}),
        ("batch", 0, 6),
        "before_commit",
        ("revoked", {b"b": large, b"c": b"3"}),
    ]


async def test_flush_waits_for_a_slow_broker() -> None:
    """Faust's own gives up after 100 ms and forgets the message in hand."""
    sent = []

    class SlowBuffer(BatchProducerBuffer):
        async def _send_pending(self, fut: Any) -> None:
            await asyncio.sleep(0.3)
            sent.append(fut)

    buffer = SlowBuffer()
    await buffer.start()
    buffer.pending.put_nowait("first")
    buffer.pending.put_nowait("second")
    await buffer.flush()
    assert sent == ["first", "second"]
    await buffer.stop()


def test_other_versions_are_refused() -> None:
    with pytest.raises(UnsupportedVersionError, match=r"aiokafka 0\.14\.0 is installed"):
        check_versions({"aiokafka": "0.13.0"})


def test_an_agent_that_yields_is_refused() -> None:
    app = BatchApp("refused", broker="kafka://127.0.0.1:9")

    async def body(batches: Any) -> Any:
        yield None

    with pytest.raises(TypeError, match="must not yield"):
        app.batch_agent(app.batch_topic("source"), name="refused")(body)


async def test_a_start_that_fails_ends_the_process_as_a_crash_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app = BatchApp("refused", broker="kafka://127.0.0.1:9")
    ended: list[BaseException] = []

    def end(exc: BaseException) -> NoReturn:
        ended.append(exc)
        raise RuntimeError("the process has ended")

    async def start() -> None:
        raise KafkaConnectionError("gone")

    monkeypatch.setattr(app, "fatal", end)
    monkeypatch.setattr(app, "start", start)
    with pytest.raises(RuntimeError, match="has ended"):
        await app.run()
    assert [type(exc) for exc in ended] == [KafkaConnectionError]
