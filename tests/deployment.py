"""A whole deployment for tests: broker, ledger, topics, catalog, and commands as processes."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from aiokafka import AIOKafkaProducer

from streams import topics
from streams.client import Client
from streams.embedded.processes import free_port
from streams.ledger import migrate
from streams.ledger.verify import Report, verify
from streams.log import LogReader
from streams.records import (
    ArmEntry,
    BudgetEntry,
    CatalogEntry,
    DeadLetter,
    Decision,
    Outcome,
    PolicyEntry,
    PriceEntry,
    Request,
    Usage,
    decode,
    encode,
)

Raw = tuple[str, bytes | None, bytes | None, int | None]
DIMENSIONS = 64
PROGRAM = (sys.executable, "-m", "streams")
ARMS: dict[str, tuple[int, int]] = {
    "small@a": (100_000, 400_000),
    "medium@a": (1_000_000, 3_000_000),
    "large@b": (5_000_000, 15_000_000),
}
"""Price of input and of output, micro-dollars per million tokens."""


def policy_and_arms(**options: float | str) -> list[CatalogEntry]:
    """Return a catalog without budgets: the policy, the arms and their prices."""
    entries: list[CatalogEntry] = [PolicyEntry(dimensions=DIMENSIONS, options=dict(options))]
    for arm, (price_in, price_out) in ARMS.items():
        entries.append(ArmEntry(arm=arm, capabilities=["text"], explore=5))
        entries.append(PriceEntry(arm=arm, version=1, input=price_in, output=price_out))
    return entries


def budget_tree(root: str, limit_nanousd: int, **more: Any) -> list[CatalogEntry]:
    """Return a root with a team and two keys below it; the keys may spend half of it each."""
    shares = {"": 1, "/team": 1, "/team/a": 2, "/team/b": 2}
    return [
        BudgetEntry(budget=root + path, limit_nanousd=limit_nanousd // part, **more)
        for path, part in shares.items()
    ]


def make_request(root: str, name: str, *, path: str = "/team/a", **more: Any) -> Request:
    """Return a request; its features follow from its name."""
    fields: dict[str, Any] = {"input_tokens": 100, "max_output_tokens": 200}
    if not more.keys() & {"prompt", "features", "features_b64"}:
        seed = int.from_bytes(name.encode(), "little") % 2**63
        numbers = np.random.default_rng(seed).normal(size=DIMENSIONS).round(3)
        fields["features"] = numbers.tolist()
    return Request(request_id=name, budget=root + path, **{**fields, **more})


def answer(decision: Decision, *, reward: float | None = 0.75) -> Outcome:
    """Return the outcome of a call that used half of its output cap."""
    usage = Usage(
        prompt_tokens=decision.input_tokens,
        completion_tokens=decision.max_output_tokens // 2,
    )
    return Outcome(
        request_id=decision.request_id,
        decision_id=decision.decision_id,
        usage=usage,
        reward=reward,
        latency_ms=20,
    )


@dataclass(frozen=True, slots=True)
class Placed:
    """A record with its place."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]] = ()


@dataclass(slots=True)
class Program:
    """One command as a process, with its log."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    metrics_port: int = 0

    def kill(self) -> None:
        """End it as a power cut would."""
        self.process.kill()
        self.process.wait(timeout=10)

    def stop(self, timeout_s: float = 40.0) -> int:
        """Ask it to end, and return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=timeout_s)

    def answers(self) -> bool:
        """Return whether a worker's page of metrics is there."""
        try:
            self.metric("")
        except OSError:
            return False
        return True

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of a worker's metric over the labels that are not given."""
        address = f"http://127.0.0.1:{self.metrics_port}/metrics"
        with urllib.request.urlopen(address, timeout=5) as response:
            lines = response.read().decode().splitlines()
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        return sum(
            float(line.rsplit(" ", 1)[1])
            for line in lines
            if line.partition("{")[0].partition(" ")[0] == name and all(w in line for w in wanted)
        )


@dataclass(slots=True)
class Deployment:
    """Topics, ledger and processes on given servers.

    The topics have fixed names, so a broker can hold one deployment. Tests that share one use
    budget roots of their own, from :meth:`new_root`.
    """

    kafka: str
    database_url: str
    folder: Path
    partitions: int = 4
    settings: dict[str, str] = field(default_factory=dict)
    workers: list[Program] = field(default_factory=list)
    sinks: list[Program] = field(default_factory=list)
    _seen: dict[tuple[str, int], list[Placed]] = field(default_factory=lambda: defaultdict(list))
    _next: dict[tuple[str, int], int] = field(default_factory=lambda: defaultdict(int))
    _declared: int = 0
    _number: Any = field(default_factory=itertools.count)

    # -- life

    async def create(self, entries: Sequence[CatalogEntry] | None = None) -> None:
        """Create topics and ledger, and write the catalog; nothing runs yet."""
        self.folder.mkdir(parents=True, exist_ok=True)
        await topics.create(self.kafka, app_id="tollway", partitions=self.partitions)
        await asyncio.to_thread(migrate.upgrade, self.database_url)
        probes = [
            BudgetEntry(budget=self._probe(n), limit_nanousd=10**15, pacing="none")
            for n in range(self.partitions)
        ]
        await self.declare([*(policy_and_arms() if entries is None else entries), *probes])

    def environment(self) -> dict[str, str]:
        """Return the variables that every command of this deployment gets."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("TOLLWAY_")}
        # Compiling the libraries anew takes longer than everything else that a start does.
        inherited.pop("PYTHONDONTWRITEBYTECODE", None)
        return {
            **inherited,
            "OPENBLAS_NUM_THREADS": "1",
            "TOLLWAY_HOME": str(self.folder),
            "TOLLWAY_KAFKA": self.kafka,
            "TOLLWAY_DATABASE_URL": self.database_url,
            "TOLLWAY_PARTITIONS": str(self.partitions),
            "TOLLWAY_SESSION_TIMEOUT_S": "3",
            "TOLLWAY_CHECKPOINT_MS": "200",
            **self.settings,
        }

    @contextmanager
    def changed(self, settings: Mapping[str, str]) -> Iterator[None]:
        """Let what is started meanwhile have these variables, too."""
        before = dict(self.settings)
        self.settings.update(settings)
        try:
            yield
        finally:
            self.settings.clear()
            self.settings.update(before)

    def start_worker(self) -> Program:
        """Start one more worker."""
        port = free_port()
        program = self._start("worker", {"TOLLWAY_METRICS_PORT": str(port)})
        program.metrics_port = port
        self.workers.append(program)
        return program

    async def ready(self, *workers: Program, timeout_s: float = 60.0) -> None:
        """Return when these workers work; before that a signal just ends their start."""
        deadline = time.monotonic() + timeout_s
        for worker in workers:
            while not worker.answers():
                self.check()
                assert time.monotonic() < deadline, (
                    f"{worker.name} is not ready\n{self._log_tails()}"
                )
                await asyncio.sleep(0.1)

    def start_sink(self) -> Program:
        """Start one more ledger sink."""
        program = self._start("sink", {})
        self.sinks.append(program)
        return program

    def _start(self, command: str, more: dict[str, str]) -> Program:
        name = f"{command}-{next(self._number)}"
        log = self.folder / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*PROGRAM, command],
                env={**self.environment(), **more},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        return Program(name, process, log)

    def command(self, *arguments: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run another command of ``tollway`` to its end."""
        return subprocess.run(
            [*PROGRAM, *arguments], env=self.environment(), capture_output=True, text=True,
            check=False, timeout=timeout_s,
        )  # fmt: skip

    def kill9(self, program: Program) -> None:
        """Kill a worker or a sink with SIGKILL."""
        self._forget(program)
        program.kill()

    def stop(self, program: Program) -> int:
        """Stop a worker or a sink in good order; return its exit code."""
        self._forget(program)
        code = program.stop()
        if code:
            # Shown by pytest where the test expected another code.
            print(program.name, program.log.read_text(errors="replace")[-6_000:])
        return code

    def restart(self, program: Program) -> Program:
        """Kill a program with SIGKILL and start another in its place."""
        is_worker = program in self.workers
        self.kill9(program)
        return self.start_worker() if is_worker else self.start_sink()

    def _forget(self, program: Program) -> None:
        for programs in (self.workers, self.sinks):
            if program in programs:
                programs.remove(program)

    def check(self) -> None:
        """Fail if a program that should run has ended."""
        for program in [*self.workers, *self.sinks]:
            code = program.process.poll()
            if code is not None:
                tail = program.log.read_text(errors="replace")[-3_000:]
                raise AssertionError(f"{program.name} ended with {code}:\n{tail}")

    def close(self) -> None:
        """End every process that is left."""
        for program in [*self.workers, *self.sinks]:
            program.kill()
        self.workers.clear()
        self.sinks.clear()

    # -- records in

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        """Yield a client of this deployment."""
        async with Client(self.kafka) as client:
            yield client

    async def declare(self, entries: Iterable[CatalogEntry]) -> None:
        """Write catalog entries."""
        async with self.client() as client:
            await client.declare(entries)
        self._declared = (await self.read_all(topics.CATALOG))[-1].offset + 1

    async def produce(
        self, records: Iterable[tuple[str, bytes | None, bytes | None] | Raw]
    ) -> list[tuple[str, int, int]]:
        """Send raw records (topic, key, value, partition if not the key's); return their places."""
        async with AIOKafkaProducer(
            bootstrap_servers=self.kafka, acks="all", max_request_size=1 << 21
        ) as producer:
            sent = []
            for topic, key, value, *partition in records:
                number = partition[0] if partition else None
                sent.append(await producer.send(topic, value, key=key, partition=number))
            found = await asyncio.gather(*sent)
        return [(record.topic, record.partition, record.offset) for record in found]

    async def send(self, *requests: Request) -> list[tuple[str, int, int]]:
        """Send requests; return their places."""
        return await self.produce(
            (topics.REQUESTS, r.budget.partition("/")[0].encode(), encode(r)) for r in requests
        )

    async def report(self, root: str, *outcomes: Outcome) -> list[tuple[str, int, int]]:
        """Send outcomes of requests of one root; return their places."""
        return await self.produce((topics.OUTCOMES, root.encode(), encode(o)) for o in outcomes)

    # -- what came out

    async def read_all(self, topic: str) -> list[Placed]:
        """Return every record of a topic, by partition and offset."""
        return await self.wait_records(topic, lambda _: True, what="")

    async def wait_records(
        self, topic: str, enough: Callable[[list[Placed]], bool], *, what: str,
        timeout_s: float = 60.0,
    ) -> list[Placed]:  # fmt: skip
        """Read a topic until its records are enough, and return all of them."""
        deadline = time.monotonic() + timeout_s
        reader = LogReader(self.kafka)
        await reader.start()
        try:
            partitions = await reader.partitions(topic)
            while True:
                for partition in partitions:
                    await self._catch_up(reader, topic, partition)
                found = [r for p in partitions for r in self._seen[topic, p]]
                if enough(found):
                    return found
                self.check()
                if time.monotonic() > deadline:
                    raise AssertionError(f"no {what} within {timeout_s} s\n{self._log_tails()}")
                await asyncio.sleep(0.1)
        finally:
            await reader.stop()

    async def _catch_up(self, reader: LogReader, topic: str, partition: int) -> None:
        place = topic, partition
        _, end = await reader.bounds(topic, partition)
        async for records in reader.read(topic, partition, self._next[place], end):
            self._seen[place] += [
                Placed(r.topic, r.partition, r.offset, r.timestamp, r.key, r.value, r.headers)
                for r in records
            ]
        self._next[place] = end

    async def decisions(self) -> dict[str, Decision]:
        """Return the effective decisions by request id."""
        return effective(await self.read_all(topics.DECISIONS))

    async def wait_decided(
        self, names: Iterable[str], *, timeout_s: float = 60.0
    ) -> dict[str, Decision]:
        """Return the effective decisions of these requests once all are there."""
        wanted = set(names)
        records = await self.wait_records(
            topics.DECISIONS,
            lambda found: wanted <= effective(found).keys(),
            what=f"decisions of {sorted(wanted)[:5]}…",
            timeout_s=timeout_s,
        )
        found = effective(records)
        return {name: found[name] for name in wanted}

    async def dead_letters(self) -> dict[tuple[str, int, int], list[DeadLetter]]:
        """Return the dead letters by the place of what they are about."""
        return by_place(await self.read_all(topics.DEAD_LETTERS))

    async def wait_dead(
        self, places: Iterable[tuple[str, int, int]], *, timeout_s: float = 60.0
    ) -> dict[tuple[str, int, int], list[DeadLetter]]:
        """Return all dead letters once there is one for each of these places."""
        wanted = set(places)
        records = await self.wait_records(
            topics.DEAD_LETTERS,
            lambda found: wanted <= by_place(found).keys(),
            what=f"dead letters of {len(wanted)} records",
            timeout_s=timeout_s,
        )
        return by_place(records)

    # -- waiting for the workers

    def partition_of(self, root: str) -> int:
        """Return the partition of a budget root."""
        return topics.home_partition(root.encode(), self.partitions)

    def _probe(self, partition: int) -> str:
        names = (f"probe-{n}" for n in itertools.count())
        return next(name for name in names if self.partition_of(name) == partition)

    async def settled(self, *, timeout_s: float = 60.0) -> None:
        """Return when all partitions have decided what was sent before, by the present catalog."""
        for _ in range(200):
            number = time.monotonic_ns()
            probes = [
                make_request(self._probe(p), f"probe-{number}-{p}", path="")
                for p in range(self.partitions)
            ]
            await self.send(*probes)
            decided = await self.wait_decided((p.request_id for p in probes), timeout_s=timeout_s)
            await self.report_probes(decided.values())
            if all(d.offsets.catalog >= self._declared for d in decided.values()):
                return
        raise AssertionError("the workers never saw the catalog's end")

    async def report_probes(self, decisions: Iterable[Decision]) -> None:
        """Settle probes, so that none stays in flight."""
        await self.produce(
            (topics.OUTCOMES, d.budget.encode(), encode(answer(d, reward=None))) for d in decisions
        )

    async def new_root(self, name: str, limit_nanousd: int = 10**12, **more: Any) -> str:
        """Declare a budget tree of this name and wait until every worker knows it."""
        more.setdefault("pacing", "none")
        more.setdefault("window", "total")
        await self.declare(budget_tree(name, limit_nanousd, **more))
        await self.settled()
        return name

    async def verify(self, *, timeout_s: float = 60.0) -> Report:
        """Wait until the ledger has booked all there is, and compare it with the topics."""
        want = {
            (topic, partition): end
            for topic in (topics.DECISIONS, topics.OUTCOMES)
            for (_, partition), end in await self._ends(topic)
        }
        deadline = time.monotonic() + timeout_s
        while True:
            cursors = await asyncio.to_thread(self._cursors)
            if all(cursors.get(place, 0) >= end for place, end in want.items()):
                return await verify(self.kafka, self.database_url)
            self.check()
            assert time.monotonic() < deadline, f"the ledger is at {cursors}, not {want}"
            await asyncio.sleep(0.1)

    async def _ends(self, topic: str) -> list[tuple[tuple[str, int], int]]:
        await self.read_all(topic)
        # Behind the last record there may be markers, which the sink does not pass.
        return [
            (place, records[-1].offset + 1 if records else 0)
            for place, records in self._seen.items() if place[0] == topic
        ]  # fmt: skip

    def _cursors(self) -> dict[tuple[str, int], int]:
        import psycopg

        from streams.ledger.database import connection_string

        with psycopg.connect(connection_string(self.database_url)) as connection:
            rows = connection.execute("SELECT topic, partition, next_offset FROM cursors")
            return {(topic, partition): end for topic, partition, end in rows.fetchall()}

    def audit(self, name: str) -> dict[str, Any]:
        """Return what ``tollway audit NAME --json`` prints."""
        done = self.command("audit", name, "--json")
        assert done.returncode in (0, 1), done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def _log_tails(self) -> str:
        programs = [*self.workers, *self.sinks]
        return "\n".join(
            f"{p.name}: {p.log.read_text(errors='replace')[-1_000:]}" for p in programs
        )


def effective(records: Iterable[Placed]) -> dict[str, Decision]:
    """Return the decision at the lowest offset for each request id."""
    found: dict[str, Decision] = {}
    for record in records:
        decision = decision_of(record)
        found.setdefault(decision.request_id, decision)
    return found


def decision_of(record: Placed) -> Decision:
    """Return the decision in a record."""
    assert record.value is not None
    return _decoded(record.value)


@lru_cache(maxsize=50_000)
def _decoded(value: bytes) -> Decision:
    # Who waits looks at all decisions again and again.
    return decode(Decision, value)


def by_place(records: Iterable[Placed]) -> dict[tuple[str, int, int], list[DeadLetter]]:
    """Return dead letters by the place of what they are about."""
    found: dict[tuple[str, int, int], list[DeadLetter]] = defaultdict(list)
    for record in records:
        letter = msgspec.json.decode(record.value or b"", type=DeadLetter)
        found[letter.topic, letter.partition, letter.offset].append(letter)
    return dict(found)
