"""Workers and a sink that fail at every named place, in every way, under load: the laws hold."""

from __future__ import annotations

import asyncio
import itertools
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from streams import topics
from streams.demo import laws
from streams.demo.books import read_booked
from streams.demo.final import AUDITS
from streams.demo.topic_log import read_topics
from streams.embedded import KafkaServer, PostgresServer
from streams.failpoints import ACTIONS, POINTS, FailpointError, arm, parse, pass_point
from streams.ledger.audit import run_audit
from streams.records import Decision, encode
from tests.deployment import Deployment, Program, answer, budget_tree, make_request, policy_and_arms


def _home(root: str) -> int:
    return topics.home_partition(root.encode(), PARTITIONS)


SESSION_S = 2
PARTITIONS = 12
"""So many that each of the workers and sinks that run at a time owns three or more."""
LANES = {"worker": 2, "sink": 2}
"""How many processes of each program run at a time; with more they would only rebalance."""
STARTS_MAX = 5
ROOTS = [
    next(f"fail-{n}" for n in itertools.count() if _home(f"fail-{n}") == partition)
    for partition in range(PARTITIONS)
]
"""One for each partition, so that whoever owns some has work."""
TIGHT_NANOUSD = 60_000_000
"""The limit of the first root: it runs out of money on the way."""


@dataclass(frozen=True, slots=True)
class Case:
    """One process that is to fail."""

    point: str
    action: str
    count: int

    @property
    def setting(self) -> str:
        """Return it as the variable says it."""
        return f"{self.point}:{self.action}:{self.count}"


def cases(program: str) -> list[Case]:
    """Return all cases of a program: each place, at its first and third pass, in every way."""
    mine = [point for point in POINTS if point.startswith(f"{program}.")]
    return [Case(*case) for case in itertools.product(mine, ACTIONS, (1, 3))]


# -- the places themselves


def test_a_place_fails_at_its_count_and_then_never_again() -> None:
    arm(parse("worker.after_send:raise:2"))
    pass_point("worker.after_send")
    pass_point("worker.after_append")
    with pytest.raises(FailpointError, match=r"worker\.after_send"):
        pass_point("worker.after_send")
    pass_point("worker.after_send")


@pytest.mark.parametrize("text", ["", "worker.after_send", "x:kill", "worker.after_send:nap:1"])
def test_what_names_no_place_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="POINT:ACTION"):
        parse(text)


# -- processes that fail there


@dataclass
class Callers:
    """Requests at a steady rate, and what was decided of them reported; some twice."""

    rig: Deployment
    sent: list[str] = field(default_factory=list)
    answered: set[str] = field(default_factory=set)

    async def send(self) -> None:
        for begin in itertools.count(0, len(ROOTS)):
            names = [f"f-{number}" for number in range(begin, begin + len(ROOTS))]
            requests = [
                make_request(root, name, path="/team/a" if place % 3 else "/team/b")
                for place, (root, name) in enumerate(zip(ROOTS, names, strict=True))
            ]
            await self.rig.send(*requests, requests[begin // 7 % len(requests)])
            self.sent += names
            await asyncio.sleep(0.5)

    async def answer(self) -> None:
        while True:
            records = []
            for name, decision in (await self.rig.decisions()).items():
                if name.startswith("f-") and name not in self.answered and decision.arm is not None:
                    self.answered.add(name)
                    root = decision.budget.partition("/")[0].encode()
                    records += self.told(name, root, decision)
            await self.rig.produce(records)
            await asyncio.sleep(0.5)

    def told(self, name: str, root: bytes, decision: Decision) -> list[tuple[str, bytes, bytes]]:
        number = int(name.partition("-")[2])
        if number % 17 == 0:
            return []
        copies = 2 if number % 5 == 0 else 1
        return [(topics.OUTCOMES, root, encode(answer(decision)))] * copies


@pytest.fixture(scope="module")
def rig(_session_postgres: PostgresServer, servers_root: Path) -> Iterator[Deployment]:
    """Return a deployment on a broker of its own; nothing runs yet."""
    broker = KafkaServer(servers_root / "kafka-failpoints")
    url = _session_postgres.create_database("failpoints")
    settings = {"TOLLWAY_SESSION_TIMEOUT_S": str(SESSION_S), "TOLLWAY_RESERVATION_TTL_S": "20"}
    result = Deployment(
        broker.start(), url, servers_root / "failpoints", partitions=PARTITIONS, settings=settings
    )
    policy, *arms = policy_and_arms()
    # The requests bring their features: to load what makes them of prompts takes seconds.
    asyncio.run(result.create([msgspec.structs.replace(policy, encoder="none"), *arms]))
    asyncio.run(result.declare(
        entry for root in ROOTS
        for entry in budget_tree(
            root, TIGHT_NANOUSD if root == ROOTS[0] else 10**12, window="total", pacing="none"
        )
    ))  # fmt: skip
    try:
        yield result
    finally:
        result.close()
        broker.kill()


async def fail_all(rig: Deployment, command: str, left: Iterator[Case]) -> None:
    """Run one process after the other, each until it has failed where it should."""
    for case in left:
        for _ in range(STARTS_MAX):
            program = rig._start(command, {"TOLLWAY_FAILPOINT": case.setting})
            try:
                if await fails(program, case):
                    break
            finally:
                program.process.kill()
                await asyncio.to_thread(program.process.wait)
        else:
            raise AssertionError(f"{case}: it had nothing to release, {STARTS_MAX} times")


async def fails(program: Program, case: Case) -> bool:
    """Wait until the process fails, and for what it makes of it.

    False if it was asked to let go of its partitions when a rebalance had taken them away.
    """
    said = f"failpoint {case.point}: {case.action}"

    def happened() -> bool:
        return said in log_of(program) or ended(program)

    if case.point == "worker.before_release":
        owns = re.compile("Owning [1-9]")
        await until(lambda: owns.search(log_of(program)) or happened(), f"work of {program.name}")
        program.process.send_signal(signal.SIGTERM)
    await until(happened, f"{case} in {program.name}")
    if said not in log_of(program):
        assert case.point == "worker.before_release", f"{case}: {log_of(program)[-3_000:]}"
        return False
    if case.action == "stop":
        # Others take over meanwhile; then it goes on where it was.
        await asyncio.sleep(SESSION_S + 1.5)
        program.process.send_signal(signal.SIGCONT)
        await asyncio.sleep(1.0)
        if not ended(program):
            program.process.send_signal(signal.SIGTERM)
    await until(lambda: ended(program), f"the end of {program.name} after {case}")
    wanted = {"kill": (-signal.SIGKILL,), "stop": (0, 70, -signal.SIGTERM), "raise": (70, 1)}
    assert program.process.returncode in wanted[case.action], log_of(program)[-3_000:]
    return True


async def until(done: object, what: str, timeout_s: float = 90.0) -> None:
    """Return once ``done()`` is true."""
    assert callable(done)
    deadline = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        await asyncio.sleep(0.05)


def log_of(program: Program) -> str:
    return program.log.read_text(errors="replace")


def ended(program: Program) -> bool:
    return program.process.poll() is not None


@pytest.mark.kafka
@pytest.mark.postgres
@pytest.mark.slow
@pytest.mark.nemesis
async def test_the_laws_hold_wherever_a_process_fails(rig: Deployment) -> None:
    callers = Callers(rig)
    load = [asyncio.create_task(callers.send()), asyncio.create_task(callers.answer())]
    try:
        lanes = []
        for program, count in LANES.items():
            left = iter(cases(program))
            lanes += [fail_all(rig, program, left) for _ in range(count)]
        await asyncio.gather(*lanes)
        load[0].cancel()
        rig.start_worker()
        rig.start_sink()
        decided = await rig.wait_decided(callers.sent, timeout_s=120)
        expected = {n for n, d in decided.items() if d.arm}
        await until(lambda: expected <= callers.answered, "all answers")
        assert not load[1].done(), load[1]
    finally:
        for task in load:
            task.cancel()
        await asyncio.gather(*load, return_exceptions=True)
    await rig.settled(timeout_s=120)
    report = await rig.verify()
    assert report.ok, report.findings
    await check_laws(rig, callers)


async def check_laws(rig: Deployment, callers: Callers) -> None:
    """Compare topics and ledger as the demo does; copies of decisions may differ, one counts."""
    log = await read_topics(rig.kafka, [])
    limits = [
        laws.Limit(budget=entry.budget, limit_nanousd=entry.limit_nanousd, window="total")
        for root in ROOTS
        for entry in budget_tree(root, TIGHT_NANOUSD if root == ROOTS[0] else 10**12)
    ]
    booked = await asyncio.to_thread(read_booked, rig.database_url)
    verdict = laws.check(log, booked, limits, sent=callers.sent, poison=[])
    findings = [found for found in verdict.findings if "was decided anew" not in found]
    assert not findings, findings
    assert verdict.lost == verdict.overspent_nanousd == verdict.overrun_nanousd == 0
    assert verdict.requests >= len(callers.sent) > 200
    assert verdict.rejected > 0
    for name in AUDITS:
        found = await asyncio.to_thread(run_audit, rig.database_url, name)
        assert found.wrong == 0, (name, found.rows[:5])
