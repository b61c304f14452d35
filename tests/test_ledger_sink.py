"""The ledger sink between a real Kafka and a real Postgres."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic, RecordsToDelete

from streams.embedded import PostgresServer
from streams.ledger import migrate
from streams.ledger.audit import run_audit
from streams.ledger.chain import Link
from streams.ledger.database import connection_string
from streams.ledger.errors import LedgerGapError, LedgerTopicsError
from streams.ledger.heads import read_heads, sign
from streams.ledger.member import Sink
from streams.ledger.sink import run_sink
from streams.ledger.unit import Counts
from streams.ledger.verify import Report, verify
from streams.records import (
    BudgetEntry,
    Decision,
    Outcome,
    PriceEntry,
    PriceTag,
    Seen,
    Usage,
    decision_id,
    encode,
)
from tests.ledger_books import tamper

pytestmark = [pytest.mark.kafka, pytest.mark.postgres]

PARTITIONS = 2
ROOTS = {0: ("acme", "beta"), 1: ("globex", "hooli")}
"""Budget roots by the partition that their keys belong to."""


def decision(request_id: str, *, lives_ms: int = 600_000, root: str = "acme") -> Decision:
    now_ms = time.time_ns() // 1_000_000
    return Decision(
        decision_id=decision_id(root, request_id),
        request_id=request_id,
        budget=f"{root}/search",
        decided_ms=now_ms,
        offsets=Seen(0, 0, 0, 100, 0),
        arm="small@x",
        reserved_nanousd=1_000,
        expires_ms=now_ms + lives_ms,
        price=PriceTag(1, 1_000, 1_000),
    )


def globex(*request_ids: str) -> list[Decision]:
    """Return decisions of a root that belongs to partition 1."""
    return [decision(request_id, root="globex") for request_id in request_ids]


def usage(request_id: str, tokens: int) -> Outcome:
    return Outcome(request_id=request_id, usage=Usage(tokens, 0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """Topics and a ledger of one test."""

    kafka: str
    url: str
    name: str

    @property
    def topics(self) -> dict[str, Any]:
        return {"decisions": f"{self.name}-d", "outcomes": f"{self.name}-o"}

    @property
    def signed(self) -> dict[str, Any]:
        return {"heads": f"{self.name}-h", "heads_key": bytes(32)}

    async def create(self, *, outcome_partitions: int = PARTITIONS) -> None:
        stamped = {"message.timestamp.type": "LogAppendTime"}
        counts = (PARTITIONS, outcome_partitions, 1, 1)
        admin = AIOKafkaAdminClient(bootstrap_servers=self.kafka)
        await admin.start()
        try:
            await admin.create_topics(
                [
                    NewTopic(f"{self.name}-{kind}", count, 1, topic_configs=stamped)
                    for kind, count in zip("doch", counts, strict=True)
                ]
            )
        finally:
            await admin.close()

    async def send(
        self, partition: int, *records: Decision | Outcome | bytes, root: str | None = None
    ) -> None:
        """Append records in this order; bytes go to the outcomes."""
        key = (root or ROOTS[partition][0]).encode()
        async with AIOKafkaProducer(bootstrap_servers=self.kafka) as producer:
            for record in records:
                kind = "d" if isinstance(record, Decision) else "o"
                value = record if isinstance(record, bytes) else encode(record)
                topic = f"{self.name}-{kind}"
                await producer.send_and_wait(topic, value, key=key, partition=partition)

    @asynccontextmanager
    async def sink(self, **options: Any) -> AsyncIterator[Counts]:
        """Run a sink in this process, and stop it in good order."""
        stop, counts = asyncio.Event(), Counts()
        arguments: dict[str, Any] = {
            "group": self.name,
            "session_timeout_s": 2.0,
            "catalog": f"{self.name}-c",
            **self.topics,
            **options,
        }
        task = asyncio.create_task(
            run_sink(self.kafka, self.url, stop=stop, counts=counts, **arguments)
        )
        try:
            yield counts
        finally:
            stop.set()
            assert await asyncio.wait_for(task, 20) is counts

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(connection_string(self.url)) as connection:
            return connection.execute(statement.format(**self.topics).encode()).fetchall()

    async def until(self, statement: str, expected: object) -> None:
        """Wait until the ledger answers with this one value."""
        await wait_for(lambda: self.rows(statement) == [(expected,)])

    async def verify(self) -> Report:
        return await verify(self.kafka, self.url, **self.topics, **self.signed)


async def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 40
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        await asyncio.sleep(0.05)


NEXT = "SELECT sum(next_offset)::int FROM cursors WHERE topic IN ('{decisions}', '{outcomes}')"


@pytest.fixture
async def deployment(kafka: str, database_url: str, topic_prefix: str) -> Deployment:
    deployment = Deployment(kafka=kafka, url=database_url, name=topic_prefix)
    migrate.upgrade(database_url)
    await deployment.create()
    return deployment


async def test_records_are_booked_once_and_verified(deployment: Deployment) -> None:
    await deployment.send(0, usage("early", 10), decision("r1"), usage("r1", 400), usage("r1", 400))
    await deployment.send(0, usage("r1", 7), b"poison", decision("lapsed", lives_ms=-1))
    await deployment.send(1, *globex("early", "over"), usage("over", 1_500))
    await deployment.send(0, decision("early"), b"the clock moves past the expiry of lapsed")
    async with AIOKafkaProducer(bootstrap_servers=deployment.kafka) as producer:
        for key, entry in (
            (b"budget:acme", encode(BudgetEntry(budget="acme", limit_nanousd=5_000))),
            (b"price:small@x", encode(PriceEntry(arm="small@x", version=1, input=1_000, output=0))),
            (b"budget:gone", None),
            (b"x", b"poison"),
        ):
            await producer.send_and_wait(f"{deployment.name}-c", entry, key=key)
    async with deployment.sink() as counts:
        await deployment.until(NEXT, 12)
        await deployment.until("SELECT count(*) FROM budget_limits", 2)
        await deployment.until("SELECT count(*) FROM transfers WHERE kind = 'expire'", 1)
    assert (counts.records, counts.dead_letters) == (12, 2)
    assert (counts.conflicts, counts.duplicates) == (1, 1)
    assert deployment.rows("SELECT budget, limit_nanousd FROM budget_limits ORDER BY 1") == [
        ("acme", 5_000),
        ("gone", None),
    ]
    amounts = "SELECT kind, sum(amount_nanousd)::int FROM transfers GROUP BY kind ORDER BY kind"
    assert dict(deployment.rows(amounts)) == {
        # "early" is another request of each root; one of them has no usage.
        "reserve": 5_000,
        "settle": 10 + 400 + 1_000,
        "release": 990 + 600,
        "overrun": 500,
        "expire": 1_000,
    }


async def test_verify_compares_every_request(deployment: Deployment) -> None:
    names = [f"r{i}" for i in range(20)]
    await deployment.send(0, *map(decision, names[:10]), *(usage(n, 100) for n in names[:10]))
    await deployment.send(1, *globex(*names[10:]), *(usage(n, 100) for n in names[12:]))
    async with deployment.sink(catalog=None):
        await deployment.until(NEXT, 38)
        report = await deployment.verify()
    assert (report.ok, report.findings) == (True, [])
    assert (report.decisions, report.outcomes, report.requests) == (20, 18, 20)
    assert (report.spent_nanousd, report.transfers) == (1_800, 56)
    for tampering, finding in (
        (
            "UPDATE transfers SET amount_nanousd = 101 WHERE request_id = 'r3' AND kind = 'settle'",
            "request r3",
        ),
        ("DELETE FROM transfers WHERE request_id = 'r4' AND kind = 'release'", "is missing"),
        (
            "UPDATE cursors SET duplicates = 1 WHERE topic = '{outcomes}' AND partition = 0",
            "1 copies of outcomes",
        ),
        ("DELETE FROM outcomes WHERE request_id = 'r5'", "9 outcomes are stored"),
        ("UPDATE decisions SET decision_offset = 999 WHERE request_id = 'r6'", "request r6"),
    ):
        before = report
        with psycopg.connect(connection_string(deployment.url)) as connection:
            connection.execute("SET session_replication_role = replica")
            connection.execute(tampering.format(**deployment.topics).encode())
        report = await deployment.verify()
        assert report.mismatches > before.mismatches
        assert any(finding in found for found in report.findings)


async def test_published_heads_outlive_sinks_and_tell_of_a_ledger_that_was_exchanged(
    deployment: Deployment,
) -> None:
    for number in range(2):
        async with deployment.sink(catalog=None, **deployment.signed):
            await deployment.send(0, decision(f"r{number}"), usage(f"r{number}", 5))
            await deployment.send(1, *globex(f"g{number}"))
            await deployment.until(NEXT, 3 * (number + 1))
    consumer = AIOKafkaConsumer(bootstrap_servers=deployment.kafka)
    await consumer.start()
    heads, _ = await read_heads(consumer, deployment.signed["heads"])
    await consumer.stop()
    assert heads.keys() == {0, 1}
    report = await deployment.verify()
    assert (report.findings, report.links_after_head) == ([], 0)
    assert report.heads >= 4 and report.links >= 6
    # A head that is published again says nothing new; one that no sink has signed is named.
    forged = sign(bytes(33), _last_link(deployment, 0))
    async with AIOKafkaProducer(bootstrap_servers=deployment.kafka) as producer:
        for value in (encode(heads[0][0]), encode(forged), b"{}"):
            await producer.send_and_wait(deployment.signed["heads"], value)
    report = await deployment.verify()
    assert len(report.findings) == 2
    assert any("is no head" in finding for finding in report.findings)
    assert any("not signed with this key: it names key" in f for f in report.findings)
    # Everything thrown away and booked anew from the topics is another ledger.
    tamper(deployment.url, "TRUNCATE cursors, decisions, outcomes, transfers, links, conflicts")
    report = await deployment.verify()
    for partition in (0, 1):
        lost = f"partition {partition}: heads were published, the ledger has none"
        assert lost in report.findings
    async with deployment.sink(catalog=None):
        await deployment.until(NEXT, 6)
    report = await deployment.verify()
    assert any("rewritten after link 0" in f or "cut off" in f for f in report.findings)
    alone = await verify(deployment.kafka, deployment.url, **deployment.topics, heads="none")
    assert alone.findings == []


def _last_link(deployment: Deployment, partition: int) -> Link:
    statement = f"SELECT * FROM links WHERE partition = {partition} ORDER BY link DESC LIMIT 1"
    return Link._make(deployment.rows(statement)[0])


# What a sink did that knew requests by partition and id: of two roots, one was booked.
_BY_PARTITION = """
DELETE FROM transfers WHERE decision_id = '{second}';
DELETE FROM decisions WHERE decision_id = '{second}';
UPDATE cursors SET next_line = 3 WHERE topic = '{decisions}' AND partition = 0;
INSERT INTO conflicts (topic, partition, record_offset, part, decision_id, request_id, reason,
    first_offset, at_ms)
VALUES ('{decisions}', 0, 1, 'decision', '{second}', 'r1', 'other_content', 0, 0)
"""
# As if the database had refused the second root's decision.
_REFUSED = """
DELETE FROM transfers WHERE decision_id = '{second}';
DELETE FROM decisions WHERE decision_id = '{second}';
UPDATE cursors SET next_line = 3 WHERE topic = '{decisions}' AND partition = 0;
INSERT INTO dead_letters VALUES ('{decisions}', 0, 1, 'refused', '', '', 0, 0)
"""


@pytest.mark.parametrize(
    ("tampering", "findings"),
    [
        pytest.param(
            _BY_PARTITION,
            [
                "request r1 of beta/search: decision at None is in effect, the topic says 1",
                "request r1 of beta/search: booked {{}}, the topics say {{'reserve': 1000",
                "decision at offset 1: a conflict of decision on one side only",
            ],
            id="old",
        ),
        pytest.param(
            "DELETE FROM decisions WHERE decision_id = '{second}'",
            ["request r1 of beta/search: decision at None is in effect, the topic says 1"],
            id="row-gone",
        ),
        pytest.param(
            _REFUSED,
            [
                "{decisions} offset 1: a dead letter on one side only",
                "request r1 of beta/search: booked {{}}, the topics say {{'reserve': 1000",
            ],
            id="refused",
        ),
        pytest.param(
            "UPDATE transfers SET decision_id = '{second}x' WHERE decision_id = '{second}'",
            [
                "request r1 of beta/search: booked {{}}, the topics say {{'reserve': 1000",
                "request r1 of beta/search: booked {{'reserve': 1000",
            ],
            id="other-id",
        ),
        pytest.param(
            "UPDATE decisions SET budget = 'beta/other' WHERE decision_id = '{second}'",
            ["decision {second} is booked for request r1 of beta/"],
            id="other-budget",
        ),
    ],
)
async def test_roots_that_share_a_partition_and_an_id_are_both_booked(
    deployment: Deployment, tampering: str, findings: list[str]
) -> None:
    await deployment.send(0, decision("r1"), decision("r1", root="beta"), usage("r1", 400))
    await deployment.send(0, usage("r1", 7), root="beta")
    await deployment.send(0, usage("r1", 7), root="globex")
    await deployment.send(1, *globex("r2"), decision("r3"), usage("r2", 5))
    async with deployment.sink(catalog=None) as counts:
        await deployment.until(NEXT, 8)
    assert counts.dead_letters == 2
    spent = "SELECT root, amount_nanousd FROM transfers WHERE kind = 'settle' ORDER BY root"
    assert deployment.rows(spent) == [("acme", 400), ("beta", 7), ("globex", 5)]
    letters = "SELECT topic, partition, record_offset, reason FROM dead_letters ORDER BY topic"
    assert deployment.rows(letters) == [
        (deployment.topics["decisions"], 1, 1, "wrong_partition"),
        (deployment.topics["outcomes"], 0, 2, "wrong_partition"),
    ]
    report = await deployment.verify()
    assert (report.findings, report.requests) == ([], 3)
    names = {**deployment.topics, "second": decision_id("beta", "r1")}
    with psycopg.connect(connection_string(deployment.url)) as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute(tampering.format(**names).encode())
    report = await deployment.verify()
    for finding in findings:
        assert any(finding.format(**names) in found for found in report.findings), report.findings


async def test_partitions_are_handed_over_between_sinks(deployment: Deployment) -> None:
    async with deployment.sink(catalog=None) as first:
        await deployment.send(0, decision("r1"))
        await deployment.send(1, *globex("r2"))
        await deployment.until(NEXT, 2)
        async with deployment.sink(catalog=None) as second:
            # Each of the two has claimed a partition when the epochs have risen.
            await deployment.until("SELECT (min(epoch) >= 2)::int FROM cursors", 1)
            await deployment.send(0, usage("r1", 5), decision("r3"))
            await deployment.send(1, usage("r2", 5), *globex("r4"))
            await deployment.until(NEXT, 6)
        await deployment.until("SELECT (min(epoch) >= 3)::int FROM cursors", 1)
        await deployment.send(0, usage("r3", 5))
        await deployment.send(1, usage("r4", 5))
        await deployment.until(NEXT, 8)
    assert first.records + second.records == 8
    assert first.fenced == second.fenced == 0
    assert (await deployment.verify()).findings == []


async def test_a_sink_that_another_deployment_fences_off_does_no_harm(
    deployment: Deployment,
) -> None:
    """Two groups by mistake: both claim every partition, and take turns at worst."""
    async with (
        deployment.sink(catalog=None) as first,
        deployment.sink(catalog=None, group=f"{deployment.name}-other") as second,
    ):
        await deployment.until("SELECT (min(epoch) >= 2)::int FROM cursors", 1)
        names = [f"r{i}" for i in range(10)]
        for name in names:
            await deployment.send(0, decision(name), usage(name, 5))
        await deployment.until(NEXT, 20)
    assert first.records + second.records == 20
    assert (await deployment.verify()).findings == []


async def test_the_sink_outlives_a_crash_of_postgres(
    kafka: str, postgres_server: PostgresServer, topic_prefix: str
) -> None:
    url = postgres_server.create_database(topic_prefix.lower().replace("-", "_")[-40:])
    deployment = Deployment(kafka=kafka, url=url, name=topic_prefix)
    migrate.upgrade(url)
    await deployment.create()
    async with deployment.sink() as counts:
        await deployment.send(0, decision("r1"))
        await deployment.until(NEXT, 1)
        await asyncio.to_thread(postgres_server.stop, "immediate")
        await deployment.send(0, usage("r1", 5), decision("r2"), usage("r2", 6))
        await wait_for(lambda: counts.retries >= 4)
        # What comes while it waits stays with the broker, and is booked once it is back.
        names = [f"b{number}" for number in range(300)]
        await deployment.send(0, *map(decision, names), *(usage(name, 1) for name in names))
        await asyncio.to_thread(postgres_server.start)
        await deployment.until(NEXT, 604)
    assert (await deployment.verify()).findings == []


async def test_a_sink_that_starts_while_the_database_is_away_waits_for_it(
    kafka: str, postgres_server: PostgresServer, topic_prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    url = postgres_server.create_database(topic_prefix.lower().replace("-", "_")[-40:])
    deployment = Deployment(kafka=kafka, url=url, name=topic_prefix)
    migrate.upgrade(url)
    await deployment.create()
    await deployment.send(0, decision("r1"))
    await asyncio.to_thread(postgres_server.stop, "immediate")
    waits = "Postgres is away, trying again in"
    async with deployment.sink():
        await wait_for(lambda: caplog.text.count(waits) >= 2)
    caplog.clear()
    async with deployment.sink():
        await wait_for(lambda: waits in caplog.text)
        await asyncio.to_thread(postgres_server.start)
        await deployment.until(NEXT, 1)


async def test_what_was_read_of_a_partition_that_is_gone_does_not_end_the_sink() -> None:
    kept, gone = TopicPartition("d", 0), TopicPartition("d", 1)
    consumer = AIOKafkaConsumer()
    consumer.assign([kept])
    sink = Sink(consumer, None, decisions="d", outcomes="o", accept_gaps=False)  # type: ignore[arg-type]
    consumer._subscription.subscription.assignment.state_value(kept).highwater = 7
    # As it is between the revocation and the end of the step that is under way.
    sink._inboxes = {0: SimpleNamespace(nexts={kept: 5}), 1: SimpleNamespace(nexts={gone: 5})}
    assert sink._waiting() == 2


async def test_deleted_records_halt_their_partition_and_no_other(deployment: Deployment) -> None:
    await deployment.send(0, decision("r1"), decision("r2"), decision("r3"))
    await deployment.send(1, *globex("r4"))
    admin = AIOKafkaAdminClient(bootstrap_servers=deployment.kafka)
    await admin.start()
    place = TopicPartition(deployment.topics["decisions"], 0)
    await admin.delete_records({place: RecordsToDelete(before_offset=2)})
    await admin.close()
    with pytest.raises(LedgerGapError, match="starts at 2: records were deleted unread"):
        async with deployment.sink(catalog=None):
            await deployment.until("SELECT count(*) FROM transfers", 1)
            await deployment.until("SELECT count(halted) FROM cursors", 2)
    cursors = run_audit(deployment.url, "cursors")
    assert cursors.wrong == 2
    async with deployment.sink(catalog=None, accept_gaps=True):
        await deployment.until(NEXT, 4)
    assert deployment.rows("SELECT sum(holes)::int FROM cursors") == [(2,)]
    assert run_audit(deployment.url, "cursors").wrong == 0


async def test_the_markers_of_transactions_are_holes_not_gaps(deployment: Deployment) -> None:
    await deployment.send(0, decision("r1"), decision("r2"))
    topic = deployment.topics["outcomes"]
    async with AIOKafkaProducer(
        bootstrap_servers=deployment.kafka, transactional_id=deployment.name
    ) as producer:
        for name in ("r1", "r2"):
            async with producer.transaction():
                outcome = encode(usage(name, 5))
                await producer.send_and_wait(topic, outcome, key=b"acme", partition=0)
    await deployment.send(0, usage("r2", 5))
    async with deployment.sink(catalog=None) as counts:
        await deployment.until(NEXT, 2 + 5)
    assert counts.gaps > 0
    assert deployment.rows("SELECT sum(holes)::int FROM cursors") == [(2,)]
    assert (await deployment.verify()).findings == []


async def test_topics_that_do_not_match_are_refused(
    kafka: str, database_url: str, topic_prefix: str
) -> None:
    deployment = Deployment(kafka=kafka, url=database_url, name=topic_prefix)
    migrate.upgrade(database_url)
    await deployment.create(outcome_partitions=3)
    with pytest.raises(LedgerTopicsError, match="equal counts"):
        await run_sink(kafka, database_url, stop=asyncio.Event(), **deployment.topics)
