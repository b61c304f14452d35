"""One run: start everything, do faults under load, let it heal, and check."""

from __future__ import annotations

import asyncio
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from pathlib import Path

from aiokafka.errors import KafkaError

from streams.ledger.audit import run_audit
from streams.ledger.verify import verify
from streams.topics import DECISIONS, OUTCOMES
from tests.nemesis_parts.checker import Verdict, check_records
from tests.nemesis_parts.cluster import RESTART, Cluster
from tests.nemesis_parts.content import Content
from tests.nemesis_parts.evidence import Evidence, Ledger, read_ledger, read_topics
from tests.nemesis_parts.faults import Nemesis
from tests.nemesis_parts.load import Load
from tests.nemesis_parts.money import check_caps, check_ledger
from tests.nemesis_parts.oracle import OracleLog, read_log
from tests.nemesis_parts.plan import draw
from tests.nemesis_parts.report import Result, make_result, too_few
from tests.nemesis_parts.world import World, make_world

AUDITS = ("trial-balance", "caps", "rederived", "cursors")
"""Audits of the ledger whose answers break a promise if there are any."""
START_S = 120.0
MORE = 1.0
"""How much longer faults are done, as a part of the time asked for, while too little has come of
them: a slow machine meets fewer right moments in the same time."""
HEAL_S = 240.0
"""How long the system may take for everything once all faults are over."""


class StuckError(Exception):
    """The system did not get through in time; the message says with what."""


async def run(
    *, seed: int, seconds: float, rate: float, keep: bool, say: Callable[[str], None],
    only: Collection[str] = (),
) -> Result:  # fmt: skip
    """Run one seed, with faults of all kinds or ``only`` of some.

    If a law does not hold, or with ``keep``, all logs stay, and everything that was read at the
    end; :func:`check_again` reads that.
    """
    async with servers_folder() as folder:
        result = await _run(folder, seed=seed, seconds=seconds, rate=rate, only=only, say=say)
        if keep or not result.ok:
            kept = Path(tempfile.mkdtemp(prefix=f"tollway-nemesis-{seed}-"))
            for file in folder.glob("*.*"):
                shutil.copy(file, kept)
            result.logs = str(kept)
    return result


def check_again(folder: Path) -> Verdict:
    """Check what a run has left in this folder."""
    world, evidence, ledger = pickle.loads((folder / "read.pickle").read_bytes())
    return check(world, evidence, ledger, folder / "oracle.jsonl")


@asynccontextmanager
async def servers_folder() -> AsyncIterator[Path]:
    """Yield a folder; what runs in it is ended with this program, however that ends."""
    folder = Path(tempfile.mkdtemp(prefix="tollway-nemesis-"))
    program = str(Path(__file__).parents[1] / "guard.py")
    guard = subprocess.Popen(
        [sys.executable, program, str(folder)], stdin=subprocess.PIPE, start_new_session=True
    )
    try:
        yield folder
    finally:
        assert guard.stdin is not None
        guard.stdin.close()
        await asyncio.to_thread(guard.wait)


async def _run(
    folder: Path, *, seed: int, seconds: float, rate: float, only: Collection[str],
    say: Callable[[str], None],
) -> Result:  # fmt: skip
    world = make_world(seed, seconds=seconds, rate=rate)
    cluster = Cluster(folder)
    try:
        await cluster.start(world.catalog())
        for slot in (*cluster.of("worker")[:2], *cluster.of("sink")):
            slot.want(True)
        load = Load(
            Content(world, seed), OracleLog(folder / "oracle.jsonl"), kafka=cluster.kafka("load"),
            direct=cluster.direct, rate=rate,
        )  # fmt: skip
        await load.start()
        nemesis = Nemesis(cluster, load, draw(seed, only))
        try:
            await _until("the first decisions", lambda: load.decided_at > 0, START_S, load)
            say(f"deciding; faults for {seconds:.0f} s")
            talking = asyncio.create_task(_talk(nemesis, load, say))
            try:
                await nemesis.run(
                    seconds,
                    # Faults of some kinds only bring about no more of the others' evidence.
                    more_s=0.0 if only else MORE * seconds,
                    enough=lambda: not too_few(seconds, nemesis, cluster),
                )
            finally:
                talking.cancel()
            say(f"{nemesis.done.total()} faults done; healing")
            stuck = await _heal(cluster, load)
        finally:
            await load.stop()
        say("everything is decided and booked; checking")
        evidence = await read_topics(cluster.direct)
        ledger = await asyncio.to_thread(read_ledger, cluster.database_url)
        (folder / "read.pickle").write_bytes(pickle.dumps((world, evidence, ledger)))
        verdict = check(world, evidence, ledger, folder / "oracle.jsonl")
        if stuck:
            verdict.find(f"stuck: {stuck}", lost=1)
        await _check_audits(verdict, cluster)
        for kind in ("worker", "sink"):
            for code, count in cluster.exits(kind).items():
                if int(code) not in RESTART:
                    verdict.find(f"{count} times a {kind} ended with code {code}")
        return make_result(seed, seconds, verdict, evidence, ledger, nemesis, cluster)
    finally:
        await cluster.close()


def check(world: World, evidence: Evidence, ledger: Ledger, oracle: Path) -> Verdict:
    """Check every law from what was written down."""
    verdict, effective = Verdict(), evidence.effective()
    expected = check_records(verdict, read_log(oracle), evidence, effective)
    check_caps(verdict, world, evidence, effective, expected)
    check_ledger(verdict, evidence, effective, expected, ledger)
    return verdict


async def _talk(nemesis: Nemesis, load: Load, say: Callable[[str], None]) -> None:
    while True:
        await asyncio.sleep(20)
        say(
            f"{nemesis.done.total()} faults, {load.sent} records sent, {load.undecided} requests "
            f"undecided, {load.copies} decisions written twice"
        )


async def _until(what: str, holds: Callable[[], bool], timeout_s: float, load: Load) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        load.check()
        if time.monotonic() > deadline:
            raise StuckError(what)
        await asyncio.sleep(0.1)


async def _heal(cluster: Cluster, load: Load) -> str:
    """Stop the load and let the system finish; return with what it did not, or nothing."""
    cluster.heal()
    for number, slot in enumerate(cluster.of("worker")):
        if slot.wanted != (number < 2):
            slot.want(number < 2)
    try:
        await _until("outcomes", lambda: load.idle, HEAL_S, load)
        await _until("undecided requests", lambda: not load.undecided, HEAL_S, load)
        # The second time what is refused because time has gone on has been refused.
        for _ in range(2):
            places = await _probe(load)
            await _until("dead letters", lambda wanted=places: wanted <= load.letters, HEAL_S, load)
        await _until_booked(cluster, HEAL_S)
    except StuckError as stuck:
        return str(stuck)
    finally:
        for slot in cluster.slots.values():
            slot.want(False)
    deadline = time.monotonic() + 40
    while any(slot.running for slot in cluster.slots.values()):
        if time.monotonic() > deadline:
            return "stopping in good order"
        await asyncio.sleep(0.1)
    return ""


async def _probe(load: Load) -> set[tuple[str, int, int]]:
    for _ in range(20):
        try:
            return await load.probe()
        except KafkaError:
            await asyncio.sleep(0.5)
    raise StuckError("sending")


async def _until_booked(cluster: Cluster, timeout_s: float) -> None:
    ends = (await read_topics(cluster.direct)).ends
    wanted = {place: end for place, end in ends.items() if place[0] in (DECISIONS, OUTCOMES)}
    deadline = time.monotonic() + timeout_s
    while True:
        nexts = (await asyncio.to_thread(read_ledger, cluster.database_url)).nexts
        if all(nexts.get(place, 0) >= end for place, end in wanted.items()):
            return
        if time.monotonic() > deadline:
            raise StuckError("booking")
        await asyncio.sleep(0.5)


async def _check_audits(verdict: Verdict, cluster: Cluster) -> None:
    """The system's own checks must be green as well."""
    report = await verify(cluster.direct, cluster.database_url)
    for finding in report.findings:
        verdict.find(f"tollway audit verify: {finding}")
    for name in AUDITS:
        answer = await asyncio.to_thread(run_audit, cluster.database_url, name)
        if answer.wrong:
            verdict.find(f"tollway audit {name}: {answer.wrong} rows, {answer.rows[0]}")
