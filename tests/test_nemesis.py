"""The nemesis' checker finds each kind of violation, and its faults come from the seed."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pytest

from streams.topics import DECISIONS, OUTCOMES, REQUESTS, home_partition
from tests.nemesis_parts.checker import Verdict, check_records, identity_of
from tests.nemesis_parts.evidence import (
    Decided,
    Evidence,
    Ledger,
    Letter,
    Offsets,
    Record,
    Tag,
)
from tests.nemesis_parts.money import check_caps, check_ledger
from tests.nemesis_parts.oracle import OracleLog, Sent, read_log
from tests.nemesis_parts.plan import CALM, RATES, draw
from tests.nemesis_parts.world import PARTITIONS, Root, World

ROOT = "acme"
HOME = home_partition(ROOT.encode(), PARTITIONS)


@dataclass
class Scene:
    """A request, a contradiction of it, poison, one outcome, and all that follows from them."""

    world: World
    sent: list[Sent]
    evidence: Evidence
    ledger: Ledger

    def verdict(self) -> Verdict:
        verdict, effective = Verdict(), self.evidence.effective()
        expected = check_records(verdict, self.sent, self.evidence, effective)
        check_caps(verdict, self.world, self.evidence, effective, expected)
        check_ledger(verdict, self.evidence, effective, expected, self.ledger)
        return verdict

    @property
    def decision(self) -> Decided:
        return self.evidence.decisions[0]

    @property
    def identity(self) -> str:
        return identity_of(ROOT.encode(), "r1")


def _records(topic: str, values: list[bytes]) -> list[Record]:
    return [
        Record((topic, HOME, offset), 1_000 + offset, ROOT.encode(), value)
        for offset, value in enumerate(values)
    ]


def _letter(record: Record, reason: str) -> Letter:
    return Letter(*record.place, reason=reason, sha256=record.digest)


def make_scene() -> Scene:
    """Return a scene in which every law holds: 1,000 reserved of 1,000, 600 settled."""
    request = {"request_id": "r1", "budget": ROOT, "max_output_tokens": 7}
    usage = {"prompt_tokens": 100, "completion_tokens": 50}
    values = [request, request, request | {"max_output_tokens": 8}]
    requests = _records(REQUESTS, [*(json.dumps(v).encode() for v in values), b"poison"])
    outcomes = _records(OUTCOMES, [json.dumps({"request_id": "r1", "usage": usage}).encode()])
    kinds = ["good", "copy", "conflict", "poison:undecodable", "good"]
    sent = [
        Sent(topic=r.place[0], key=ROOT, kind=kind, request_id="r1", sha256=r.digest, place=r.place)
        for r, kind in zip([*requests, *outcomes], kinds, strict=True)
    ]
    identity = identity_of(ROOT.encode(), "r1")
    decided = Decided(
        decision_id=identity, request_id="r1", budget=ROOT, decided_ms=1_000,
        offsets=Offsets(request=0, outcomes=0, decisions=0), arm="small", reserved_nanousd=1_000,
        expires_ms=9_000, price=Tag(input=2_000, output=8_000),
        budgets=[[ROOT, 0, 1_000, 1_000, 0, 0.0, 0.0]], partition=HOME, offset=0,
    )  # fmt: skip
    evidence = Evidence(requests=requests, outcomes=outcomes, decisions=[decided])
    for record, reason in ((requests[2], "conflict"), (requests[3], "undecodable")):
        evidence.letters[record.place].append(_letter(record, reason))
    ledger = Ledger(places={identity: (HOME, 0)}, swept_ms={HOME: 1_000})
    ledger.amounts[identity] = {"reserve": 1_000, "settle": 600, "release": 400}
    ledger.kinds.update((identity, kind) for kind in ledger.amounts[identity])
    for topic in (DECISIONS, OUTCOMES):
        for number in range(PARTITIONS):
            place = topic, number
            evidence.ends[place] = ledger.nexts[place] = int(number == HOME)
    roots = [Root(name=ROOT, weight=1.0, kind="tight", window="total")]
    return Scene(World(roots=roots, budgets={ROOT: (1_000, "total")}), sent, evidence, ledger)


def test_a_scene_without_fault_passes():
    verdict = make_scene().verdict()
    assert (verdict.broken, verdict.findings) == (0, [])


def _no_decision(scene: Scene) -> None:
    scene.evidence.decisions.clear()


def _request_gone(scene: Scene) -> None:
    del scene.evidence.requests[1]


def _invented(scene: Scene) -> None:
    scene.evidence.outcomes += _records(OUTCOMES, [b"", b'{"request_id":"r1","reward":1}'])[1:]


def _unknown_decided(scene: Scene) -> None:
    other = copy.copy(scene.decision)
    other.decision_id, other.request_id, other.offset = "0" * 32, "r2", 1
    scene.evidence.decisions.append(other)


def _no_letter(scene: Scene) -> None:
    del scene.evidence.letters[REQUESTS, HOME, 2]


def _other_reason(scene: Scene) -> None:
    scene.evidence.letters[REQUESTS, HOME, 3][0].reason = "range"


def _two_letters(scene: Scene) -> None:
    scene.evidence.letters[REQUESTS, HOME, 3] *= 2


def _good_refused(scene: Scene) -> None:
    record = scene.evidence.requests[1]
    scene.evidence.letters[record.place].append(_letter(record, "conflict"))


def _outcome_refused(scene: Scene) -> None:
    record = scene.evidence.outcomes[0]
    scene.evidence.letters[record.place].append(_letter(record, "unknown_request"))


def _decided_twice(scene: Scene) -> None:
    later = copy.deepcopy(scene.decision)
    later.offset = 1
    scene.evidence.decisions.append(later)
    scene.evidence.ends[DECISIONS, HOME] = scene.ledger.nexts[DECISIONS, HOME] = 2


def _overtaken(scene: Scene) -> None:
    scene.decision.offset = 3
    scene.ledger.places[scene.identity] = (HOME, 3)


def _over_limit(scene: Scene) -> None:
    scene.decision.reserved_nanousd = 1_001
    scene.decision.budgets[0][3] = 1_001
    scene.ledger.amounts[scene.identity] |= {"reserve": 1_001, "release": 401}


def _other_position(scene: Scene) -> None:
    scene.decision.budgets[0][4] = 1


def _settled_twice(scene: Scene) -> None:
    scene.ledger.kinds[scene.identity, "settle"] += 1


def _not_settled(scene: Scene) -> None:
    scene.ledger.amounts[scene.identity] = {"reserve": 1_000}


def _settled_too_much(scene: Scene) -> None:
    scene.ledger.amounts[scene.identity]["settle"] = 601


def _other_decision_booked(scene: Scene) -> None:
    scene.ledger.places[scene.identity] = (HOME, 1)


def _ledger_behind(scene: Scene) -> None:
    scene.ledger.nexts[OUTCOMES, HOME] = 0


def _lost(verdict: Verdict) -> bool:
    return verdict.lost > 0


def _doubled(verdict: Verdict) -> bool:
    return verdict.doubled > 0


def _overspent(verdict: Verdict) -> bool:
    return verdict.overspent_nanousd == 1


def _broken(verdict: Verdict) -> bool:
    return verdict.broken > 0


@pytest.mark.parametrize(
    ("change", "found"),
    [
        pytest.param(_no_decision, _lost, id="a-request-without-decision"),
        pytest.param(_request_gone, _lost, id="an-acknowledged-record-is-gone"),
        pytest.param(_invented, _doubled, id="a-record-that-nobody-sent"),
        pytest.param(_unknown_decided, _doubled, id="a-decision-for-nobody"),
        pytest.param(_no_letter, _lost, id="a-conflict-without-dead-letter"),
        pytest.param(_other_reason, _broken, id="refused-for-another-reason"),
        pytest.param(_two_letters, _doubled, id="two-dead-letters"),
        pytest.param(_good_refused, _lost, id="a-copy-refused"),
        pytest.param(_outcome_refused, _lost, id="an-outcome-refused"),
        pytest.param(_decided_twice, _doubled, id="decided-twice"),
        pytest.param(_overtaken, _broken, id="not-where-it-was-foretold-to-lie"),
        pytest.param(_over_limit, _overspent, id="over-the-limit-by-one"),
        pytest.param(_other_position, _broken, id="a-position-that-the-topics-deny"),
        pytest.param(_settled_twice, _doubled, id="settled-twice"),
        pytest.param(_not_settled, _lost, id="not-settled"),
        pytest.param(_settled_too_much, _doubled, id="settled-too-much"),
        pytest.param(_other_decision_booked, _broken, id="a-later-copy-booked"),
        pytest.param(_ledger_behind, _lost, id="the-ledger-has-not-read-all"),
    ],
)
def test_the_checker_finds(change: Callable[[Scene], None], found: Callable[[Verdict], bool]):
    scene = make_scene()
    change(scene)
    verdict = scene.verdict()
    assert verdict.broken, verdict
    assert found(verdict), verdict


def test_the_log_keeps_what_was_sent_and_what_was_said_of_it(tmp_path: Path):
    log = OracleLog(tmp_path / "oracle.jsonl")
    first = log.intend(REQUESTS, b"acme", b"one", "good", "r1")
    second = log.intend(OUTCOMES, b"\xff", b"two", "poison:undecodable", "r2")
    log.acknowledged(first, 3, 17)
    log.unknown(second)
    log.close()
    sent = read_log(tmp_path / "oracle.jsonl")
    assert [(s.kind, s.place, s.failed) for s in sent] == [
        ("good", (REQUESTS, 3, 17), False),
        ("poison:undecodable", None, True),
    ]
    assert [s.sha256 for s in sent] == [sha256(v).hexdigest() for v in (b"one", b"two")]


def test_a_seed_draws_the_same_faults_and_in_time_every_kind():
    faults = [fault for fault, _ in zip(draw(3), range(1_000), strict=False)]
    assert faults == [fault for fault, _ in zip(draw(3), range(1_000), strict=False)]
    assert faults != [fault for fault, _ in zip(draw(4), range(1_000), strict=False)]
    assert {fault.kind for fault in faults} == set(RATES) > CALM
