"""Workers killed, stopped and joined under load: every request is decided once, every cap holds."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions

from policy.catalog import Catalog
from policy.digest import state_digest
from policy.lexical import default_encoder
from policy.state import Limits, State
from streams import topics
from streams.embedded import KafkaServer, PostgresServer
from streams.faust_batches import EXIT_CODE
from streams.faust_batches.table import NO_REIGN, REIGN_HEADER, REIGN_KEY
from streams.following import Follower
from streams.intake import Intake
from streams.log import LogReader
from streams.metrics import Metrics
from streams.opening import Opener
from streams.publisher import make_producer
from streams.records import Decision, Outcome, encode
from streams.replay_log.run import Bound, Report, replay_log
from streams.settling import settle_records
from tests.deployment import (
    Deployment,
    Placed,
    answer,
    budget_tree,
    decision_of,
    effective,
    make_request,
)

pytestmark = [pytest.mark.kafka, pytest.mark.postgres]

ROOTS = [f"load-{n}" for n in range(6)]


@dataclass
class Load:
    """Requests at a steady rate, and callers that answer the decisions they read."""

    rig: Deployment
    prefix: str
    count: int
    sent: list[str] = field(default_factory=list)
    answered: set[str] = field(default_factory=set)
    chance: random.Random = field(default_factory=lambda: random.Random(7))

    async def send(self) -> None:
        """Send all requests, a twentieth of them twice."""
        while len(self.sent) < self.count:
            begin = len(self.sent)
            names = [f"{self.prefix}-{n}" for n in range(begin, min(begin + 25, self.count))]
            names += self.chance.sample(self.sent, min(len(self.sent), 1))
            await self.rig.send(*(self.request(name) for name in names))
            self.sent += [name for name in names if name not in self.sent]
            await asyncio.sleep(0.1)

    def request(self, name: str) -> Any:
        number = int(name.rsplit("-", 1)[1])
        path = "/team/a" if number % 3 else "/team/b"
        return make_request(ROOTS[number % len(ROOTS)], name, path=path)

    async def answer(self) -> None:
        """Report outcomes: some twice, some with the reward apart."""
        while True:
            records = []
            for name, decision in (await self.rig.decisions()).items():
                mine = name.startswith(f"{self.prefix}-") and name not in self.answered
                if mine and decision.arm is not None:
                    self.answered.add(name)
                    root = decision.budget.partition("/")[0].encode()
                    records += [(topics.OUTCOMES, root, encode(o)) for o in self.told(decision)]
            await self.rig.produce(records)
            await asyncio.sleep(0.1)

    def told(self, decision: Decision) -> list[Outcome]:
        """Return the outcomes that the caller of one decision sends."""
        parts = [answer(decision)]
        if self.chance.random() < 0.2:
            parts = [
                Outcome(request_id=decision.request_id, reward=parts[0].reward),
                Outcome(request_id=decision.request_id, usage=parts[0].usage),
            ]
        return parts * 2 if self.chance.random() < 0.1 else parts

    async def until(self, decided: int) -> None:
        """Return when so many requests of this load are decided."""
        mine = f"{self.prefix}-"

        def enough(found: list[Placed]) -> bool:
            return sum(name.startswith(mine) for name in effective(found)) >= decided

        await self.rig.wait_records(
            topics.DECISIONS, enough, what=f"{decided} decisions", timeout_s=120
        )

    async def finish(self) -> None:
        """Return when every request is decided and every decision's outcome was sent."""
        await self.until(self.count)
        decided = await self.rig.decisions()
        taken = {n for n, d in decided.items() if d.arm and n.startswith(f"{self.prefix}-")}
        deadline = time.monotonic() + 60
        while not taken <= self.answered:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)


@asynccontextmanager
async def loaded(rig: Deployment, prefix: str, count: int) -> AsyncIterator[Load]:
    """Run a load; on leaving all of it is decided and answered."""
    load = Load(rig, prefix, count)
    tasks = [asyncio.create_task(load.send()), asyncio.create_task(load.answer())]
    try:
        yield load
        await tasks[0]
        await load.finish()
        assert not tasks[1].done(), tasks[1]
    finally:
        # aiokafka loses a cancellation that comes while a producer is being closed.
        while running := [task for task in tasks if not task.done()]:
            for task in running:
                task.cancel()
            await asyncio.wait(running, timeout=1.0)
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture(scope="module")
def broker(servers_root: Path) -> KafkaServer:
    return KafkaServer(servers_root / "kafka-worker")


@pytest.fixture(scope="module")
def rig(
    broker: KafkaServer, _session_postgres: PostgresServer, servers_root: Path
) -> Iterator[Deployment]:
    """Return a deployment whose broker and processes may be killed, with one worker."""
    url = _session_postgres.create_database("rig")
    result = Deployment(broker.start(), url, servers_root / "rig")
    asyncio.run(result.create())
    # Root 0 runs out of money, the others do not; half of the roots are paced.
    limits = [240_000_000, *[10**12] * (len(ROOTS) - 1)]
    asyncio.run(result.declare(
        entry for number, (root, limit) in enumerate(zip(ROOTS, limits, strict=True))
        for entry in budget_tree(
            root, limit, window="total" if number % 2 == 0 else "hour",
            pacing="none" if number % 2 == 0 else "even",
        )
    ))  # fmt: skip
    result.start_worker()
    result.start_sink()
    try:
        asyncio.run(result.settled(timeout_s=120.0))
        yield result
    finally:
        result.close()


async def check_laws(rig: Deployment, load: Load) -> int:
    """Check what every reader of the topics and of the ledger may rely on; return the copies."""
    await rig.settled()
    records = await rig.read_all(topics.DECISIONS)
    copies = Counter(decision_of(r).request_id for r in records)
    decided = effective(records)
    assert {n for n in decided if n.startswith(f"{load.prefix}-")} == set(load.sent)
    assert len(load.sent) == load.count
    for record in records:
        decision = decision_of(record)
        assert decision.decision_id == decided[decision.request_id].decision_id
        if decision.arm is not None:
            for position in decision.budgets:
                used = position.reserved_nanousd + position.settled_nanousd
                assert used <= position.limit_nanousd, decision
    report = await rig.verify()
    assert report.ok, report.findings
    assert report.overrun_nanousd == 0
    for letters in (await rig.dead_letters()).values():
        raise AssertionError(f"good input was refused: {letters}")
    return sum(copies.values()) - len(copies)


async def test_workers_killed_under_load_lose_and_double_nothing(rig: Deployment) -> None:
    rig.start_worker()
    async with loaded(rig, "kill", 360) as load:
        for decided in (50, 130, 210):
            await load.until(decided)
            rig.restart(rig.workers[0])
        rig.restart(rig.sinks[0])
    await check_laws(rig, load)


async def test_workers_come_and_go_under_load(rig: Deployment) -> None:
    await rig.ready(*rig.workers)
    while len(rig.workers) > 1:
        assert rig.stop(rig.workers[-1]) == 0
    async with loaded(rig, "join", 300) as load:
        await load.until(40)
        rig.start_worker()
        rig.start_worker()
        await rig.ready(*rig.workers)
        # A fold must begin windows as they were declared at the time, not as they are now.
        await rig.declare(budget_tree(ROOTS[3], 10**12, window="2s", pacing="even"))
        await load.until(160)
        assert rig.stop(rig.workers[0]) == 0
        await load.until(220)
        assert rig.stop(rig.workers[0]) == 0
    await check_laws(rig, load)


async def test_a_worker_asleep_for_longer_than_its_session_does_no_harm(rig: Deployment) -> None:
    sleeper = rig.workers.pop()
    rig.start_worker()
    try:
        async with loaded(rig, "sleep", 200) as load:
            await load.until(20)
            sleeper.process.send_signal(signal.SIGSTOP)
            await rig.ready(*rig.workers)
            # Whatever it owned is decided by the other once its session is over.
            await load.until(200)
            sleeper.process.send_signal(signal.SIGCONT)
        # It may find that another has written to its partitions, and then it ends itself.
        assert sleeper.stop() in (0, EXIT_CODE)
    finally:
        sleeper.kill()
    await check_laws(rig, load)


async def test_a_worker_stopped_in_good_order_leaves_nothing_to_do_again(rig: Deployment) -> None:
    await rig.ready(*rig.workers)
    while rig.workers:
        assert rig.stop(rig.workers[0]) == 0
    before = await rig.read_all(topics.DECISIONS)
    worker = rig.start_worker()
    await rig.settled(timeout_s=120)
    after = (await rig.read_all(topics.DECISIONS))[:]
    old = {(r.partition, r.offset) for r in before}
    names = effective(before)
    new = [decision_of(r) for r in after if (r.partition, r.offset) not in old]
    assert [d.request_id for d in new if d.request_id in names] == []
    assert worker.metric("tollway_duplicate_requests_total") == 0
    assert worker.metric("tollway_outcomes_total", effect="duplicate") == 0


async def test_a_killed_broker_is_survived(rig: Deployment, broker: KafkaServer) -> None:
    worker = rig.workers[0]
    async with loaded(rig, "broker", 100) as load:
        await load.until(100)
    broker.kill()
    # Programs that are started meanwhile wait, and can be stopped.
    late = [rig.start_worker(), rig.start_sink(), rig.start_worker(), rig.start_sink()]
    deadline = time.monotonic() + 60
    while not all("Kafka is away, trying again in" in p.log.read_text() for p in late):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)
    assert [rig.stop(program) for program in late[:2]] == [0, 0]
    assert broker.start() == rig.kafka
    async with loaded(rig, "back", 100) as load:
        pass
    await rig.ready(*late[2:3])
    assert [program.process.poll() for program in (worker, *late[2:])] == [None] * 3
    assert [rig.stop(program) for program in late[2:]] == [0, 0]
    await check_laws(rig, load)


class Tables(dict[str, Any]):
    """Tables as the changelogs tell them, or empty ones."""

    @classmethod
    async def read(cls, rig: Deployment) -> Tables:
        """Return the tables that a worker would restore now."""
        return cls({
            name: Table(await rig.read_all(topics.changelog("tollway", name)))
            for name in topics.TABLES
        })  # fmt: skip

    @classmethod
    def empty(cls) -> Tables:
        """Return tables without a value."""
        return cls({name: Table([]) for name in topics.TABLES})


class Table:
    """One table's values by partition."""

    def __init__(self, records: list[Placed]) -> None:
        self._values: dict[int, dict[bytes, bytes]] = {}
        reigns: dict[int, int] = {}
        for record in records:
            values = self._values.setdefault(record.partition, {})
            assert record.key is not None
            reign = int(dict(record.headers).get(REIGN_HEADER, NO_REIGN))
            if record.key == REIGN_KEY:
                reigns[record.partition] = record.offset
            elif reign < reigns.get(record.partition, NO_REIGN):
                pass  # A former owner wrote it too late.
            elif record.value is None:
                values.pop(record.key, None)
            else:
                values[record.key] = record.value

    def values(self, partition: int) -> dict[bytes, bytes]:
        """Return the values of one partition."""
        return dict(self._values.get(partition, {}))

    def reigning(self, partition: int) -> Table:
        """Return the table itself: nobody writes to it."""
        return self

    def __len__(self) -> int:
        return sum(map(len, self._values.values()))


async def recovered(rig: Deployment, tables: Tables) -> list[State]:
    """Return the state of every partition as a worker would open it with these tables."""
    follower, reader = Follower(rig.kafka), LogReader(rig.kafka)
    producer = make_producer(rig.kafka)
    services = (follower, reader, producer)
    for service in services:
        await service.start()

    def intake(catalog: Catalog) -> Intake:
        return Intake(catalog, None)

    opener = Opener(
        reader=reader, follower=follower, make_intake=intake, tables=tables, producer=producer,
        partitions=rig.partitions, limits=Limits(), metrics=Metrics(), features=lambda: "given",
    )  # fmt: skip
    states = []
    try:
        for number in range(rig.partitions):
            partition = await opener.open(number)
            state = partition.state
            # What came after the last decision, which a worker is given by its agent.
            _, end = await reader.bounds(topics.OUTCOMES, number)
            start = state.gate.position.outcomes
            async for records in reader.read(topics.OUTCOMES, number, start, end):
                for record in records:
                    settle_records(state, intake(state.catalog), [record], rig.partitions)
            states.append(state)
        return states
    finally:
        for service in services:
            await service.stop()


async def test_the_topics_alone_give_the_state_of_the_tables(rig: Deployment) -> None:
    while rig.workers:
        assert rig.stop(rig.workers[0]) == 0
    tables = await Tables.read(rig)
    assert all(len(table) > 0 for table in tables.values())
    pairs = zip(
        await recovered(rig, tables), await recovered(rig, Tables.empty()), strict=True
    )  # fmt: skip
    for kept, folded in pairs:
        assert kept.gate.position == folded.gate.position
        assert kept.budgets.content() == folded.budgets.content()
        assert kept.reservations.open_count == folded.reservations.open_count
        assert len(kept.reservations) == len(folded.reservations)
        arms = [arm.arm for arm in kept.catalog.arms]
        for arm in arms:
            assert kept.policy.dump(arm) == folded.policy.dump(arm), arm
            assert kept.lengths_of(arm).dump() == folded.lengths_of(arm).dump(), arm
        windows = sorted(kept.windows.keys())
        assert windows == sorted(folded.windows.keys())
        for arm, segment in windows:
            page = f"{arm} {segment}"
            assert kept.windows.dump_page(page) == folded.windows.dump_page(page)


async def test_a_worker_asked_to_end_in_the_middle_drains_and_leaves_nothing_to_do_again(
    rig: Deployment,
) -> None:
    while rig.workers:
        assert rig.stop(rig.workers[0]) == 0
    worker = rig.start_worker()
    await rig.ready(worker)
    names = [f"drain-{n}" for n in range(3_000)]
    # Nobody answers, so only of roots that have money for all.
    await rig.send(*(make_request(ROOTS[n % 2 * 2 + 2], name) for n, name in enumerate(names)))
    await rig.wait_records(
        topics.DECISIONS, lambda found: _some(found, "drain-"), what="the first decisions"
    )
    asked = time.monotonic()
    assert rig.stop(worker) == 0
    assert time.monotonic() - asked < 10.0
    successor = rig.start_worker()
    await rig.ready(successor)
    await rig.wait_decided(names, timeout_s=120)
    records = await rig.read_all(topics.DECISIONS)
    copies = Counter(decision_of(r).request_id for r in records)
    assert {copies[name] for name in names} == {1}
    assert successor.metric("tollway_duplicate_requests_total") == 0
    assert rig.stop(successor) == 0


def _some(found: list[Placed], prefix: str) -> bool:
    return any(b'"request_id":"' + prefix.encode() in (r.value or b"") for r in found)


async def test_all_that_was_decided_is_decided_alike_again(rig: Deployment) -> None:
    # After kills, sleeps, rebalances and a dead broker.
    done = rig.command("replay-log", "--json", timeout_s=120)
    report = json.loads(done.stdout)
    found = [difference for part in report["partitions"] for difference in part["differences"]]
    assert (done.returncode, found, report["ok"]) == (0, [], True), report
    records = await rig.read_all(topics.DECISIONS)
    # Later copies, of the worker that slept, were not decided in their place and do not count.
    decided = {decision_of(record).decision_id for record in records}
    assert report["compared"] == report["equal"] >= len(decided) > 3_000
    states = await recovered(rig, await Tables.read(rig))
    assert [part["state_sha256"] for part in report["partitions"]] == list(
        map(state_digest, states)
    )


class FlippingReader(LogReader):
    """Reads one record with a byte changed."""

    place = ("", 0, 0)
    at, by = 0, 1

    async def read(self, *args: Any) -> AsyncIterator[Any]:
        """Yield what the topic holds, but for that byte."""
        async for records in super().read(*args):
            yield [self._flipped(record) for record in records]

    def _flipped(self, record: Any) -> Any:
        if (record.topic, record.partition, record.offset) != self.place:
            return record
        value = bytearray(record.value)
        value[self.at] ^= self.by
        return replace(record, value=bytes(value))


async def replayed(rig: Deployment, partition: int, begin: int, end: int) -> Report:
    """Return what a replay of a part of a partition finds."""
    return await replay_log(
        rig.kafka, begin=Bound(offset=begin), end=Bound(offset=end), partitions=[partition],
        limits=Limits(), make_intake=lambda catalog: Intake(catalog, None),
        features=lambda _: default_encoder().version,
    )  # fmt: skip


@pytest.mark.parametrize("drained", [False, True], ids=["in-small-rounds", "in-a-backlog"])
async def test_a_changed_byte_of_a_decision_is_found(
    rig: Deployment, monkeypatch: pytest.MonkeyPatch, drained: bool
) -> None:
    monkeypatch.setattr("streams.replay_log.replayer.LogReader", FlippingReader)
    decisions = [r for r in await rig.read_all(topics.DECISIONS) if r.partition == 0]
    places = [n for n, r in enumerate(decisions) if _some([r], "drain-") == drained]
    middle = places[len(places) // 2]
    # Nothing is changed yet: a part of the log by itself is alike, also where it begins inside a
    # round and ends inside one.
    begin, end = decisions[middle - 5].offset, decisions[middle + 5].offset
    monkeypatch.setattr(FlippingReader, "place", ("", 0, 0))
    untouched = await replayed(rig, 0, begin, end)
    assert untouched.complete
    assert not untouched.differs
    part = untouched.partitions[0]
    assert part.compared == part.equal
    assert part.compared >= 10
    chance = random.Random(11)
    target = decisions[middle]
    assert target.value is not None
    changed = chance.sample(range(len(target.value)), 6)
    changed += [
        target.value.index(word) + len(word)
        for word in (b'"decisions":', b'"curve":', b'"outcomes":', b'"request":', b'"decided_ms":')
    ]
    for at in changed:
        FlippingReader.place = (topics.DECISIONS, 0, target.offset)
        FlippingReader.at, FlippingReader.by = at, 1
        report = await replayed(rig, 0, begin, end)
        assert report.differs, target.value[max(at - 20, 0) : at + 20]


async def test_the_topics_survive_the_loss_of_all_tables(rig: Deployment) -> None:
    states = await recovered(rig, await Tables.read(rig))
    names = [topics.changelog("tollway", name) for name in topics.TABLES]
    await recreate(rig, names)
    before = await rig.read_all(topics.DECISIONS)
    assert len(await fresh(rig).read_all(names[0])) == 0
    worker = rig.start_worker()
    await rig.ready(worker)
    assert rig.stop(worker) == 0
    assert await rig.read_all(topics.DECISIONS) == before
    again = await recovered(rig, await Tables.read(fresh(rig)))
    assert list(map(state_digest, again)) == list(map(state_digest, states))


async def test_topics_that_are_not_what_they_were_are_refused(rig: Deployment) -> None:
    while rig.workers:
        assert rig.stop(rig.workers[0]) == 0
    worker = rig.start_worker()
    await rig.settled(timeout_s=120)
    await recreate(rig, [topics.OUTCOMES])
    # Whichever notices first: the look at the topics, or a consumer that finds nothing there.
    assert worker.process.wait(timeout=60) in (78, EXIT_CODE)
    rig.workers.remove(worker)
    assert "was deleted and created again" in refused(rig)
    async with admin_of(rig) as admin:
        await admin.create_partitions({topics.REQUESTS: NewPartitions(rig.partitions + 2)})
    assert "budgets would have two owners" in refused(rig)


def refused(rig: Deployment) -> str:
    """Start a worker that is to refuse to work, as a supervisor does; return what it says."""
    for _ in range(3):
        worker = rig.start_worker()
        rig.workers.remove(worker)
        try:
            code = worker.process.wait(timeout=60)
        finally:
            worker.kill()
        told = worker.log.read_text()
        # Another reason came first, for which a new start is the answer.
        if code != EXIT_CODE:
            break
    assert code == 78, told[-3_000:]
    return told


@asynccontextmanager
async def admin_of(rig: Deployment) -> AsyncIterator[AIOKafkaAdminClient]:
    """Yield an admin client of the deployment's broker."""
    admin = AIOKafkaAdminClient(bootstrap_servers=rig.kafka)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


async def recreate(rig: Deployment, names: list[str]) -> None:
    """Delete topics, and create them as the deployment does."""
    deadline = time.monotonic() + 30
    async with admin_of(rig) as admin:
        await admin.delete_topics(names)
        while set(names) & set(await admin.list_topics()):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        await topics.create(rig.kafka, app_id="tollway", partitions=rig.partitions)
        while not set(names) <= set(await admin.list_topics()):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)


def fresh(rig: Deployment) -> Deployment:
    """Return the deployment as one sees it that has read none of its topics."""
    return Deployment(rig.kafka, rig.database_url, rig.folder, partitions=rig.partitions)
