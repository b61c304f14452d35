"""Noise between good records, through the real agents: one dead letter each, the rest go on."""

from __future__ import annotations

import random

import pytest

from streams import topics
from streams.records import BadRecordError, Outcome, Request, decode, encode
from tests.deployment import Deployment, answer, make_request

pytestmark = [pytest.mark.kafka, pytest.mark.postgres]

ROOT = "noise"
NOISE = 150


def noise(kind: type, good: bytes, chance: random.Random) -> bytes:
    """Return bytes that are no record of this kind, most of them nearly one."""
    while True:
        value = bytearray(good if chance.random() < 0.8 else chance.randbytes(40))
        for _ in range(chance.randint(1, 5)):
            at = chance.randrange(len(value) + 1)
            change = chance.choice(
                [b"", b"\0", b"\xff", b'"', b"{", b"9" * 30, chance.randbytes(3)]
            )
            value[at : at + chance.randint(0, 4)] = change
        try:
            decode(kind, bytes(value))
        except BadRecordError:
            return bytes(value)


async def test_noise_is_dead_lettered_and_good_records_go_on(deployment: Deployment) -> None:
    await deployment.new_root(ROOT)
    worker = deployment.workers[0].process.pid
    chance = random.Random(20)
    key, partition = ROOT.encode(), deployment.partition_of(ROOT)
    goods = [make_request(ROOT, f"noise-{n}") for n in range(30)]
    good = encode(goods[0])
    bad = [noise(Request, good, chance) for _ in range(NOISE)]
    records = [(topics.REQUESTS, key, value, partition) for value in bad]
    for request in goods:
        at = chance.randrange(len(records) + 1)
        records.insert(at, (topics.REQUESTS, key, encode(request), partition))
    places = await deployment.produce(records)
    sent = {place for place, (_, _, value, _) in zip(places, records, strict=True) if value in bad}
    decided = await deployment.wait_decided(request.request_id for request in goods)
    assert all(decision.arm is not None for decision in decided.values())

    told = encode(answer(decided["noise-0"]))
    bad = [noise(Outcome, told, chance) for _ in range(NOISE)]
    records = [(topics.OUTCOMES, key, value, partition) for value in bad]
    records[::5] = [
        (topics.OUTCOMES, key, encode(answer(d)), partition) for d in decided.values()
    ]  # fmt: skip
    places = await deployment.produce(records)
    sent |= {place for n, place in enumerate(places) if n % 5}

    letters = await deployment.wait_dead(sent)
    await deployment.settled()
    assert {place: len(letters[place]) for place in sent} == dict.fromkeys(sent, 1)
    mine = {p for p in await deployment.dead_letters() if p[1] == partition and p in set(places)}
    assert mine <= sent
    assert deployment.workers[0].process.pid == worker
    deployment.check()
    report = await deployment.verify()
    assert report.ok, report.findings
