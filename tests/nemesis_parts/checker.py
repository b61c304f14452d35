"""The laws, from the generator's log, the topics and the ledger's rows: equality, no tolerance."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from streams.topics import DECISIONS, OUTCOMES, REQUESTS, home_partition
from tests.nemesis_parts.evidence import Decided, Evidence, Record
from tests.nemesis_parts.oracle import Place, Sent
from tests.nemesis_parts.world import PARTITIONS

FINDINGS_MAX = 40
PARK_MS = 60_000
"""So much earlier than its decision an outcome may be."""


@dataclass(slots=True, kw_only=True)
class Verdict:
    """What was found; no findings and zeros if the laws hold."""

    lost: int = 0
    doubled: int = 0
    overspent_nanousd: int = 0
    broken: int = 0
    findings: list[str] = field(default_factory=list)

    def find(self, finding: str, *, lost: int = 0, doubled: int = 0) -> None:
        """Note a broken law."""
        self.broken += 1
        self.lost += lost
        self.doubled += doubled
        if len(self.findings) < FINDINGS_MAX:
            self.findings.append(finding)


@dataclass(slots=True)
class Usage:
    """The usage that counts for a decision: its outcome's place and time, and the cost."""

    offset: int
    clock_ms: int
    cost_nanousd: int


@dataclass(slots=True, kw_only=True)
class Expected:
    """What must be there: the dead letters by place, and the usage of each decision.

    A letter's reason is None where a record may or may not have been refused yet.
    """

    letters: dict[Place, str | None] = field(default_factory=dict)
    usage: dict[str, Usage] = field(default_factory=dict)


def identity_of(key: bytes, request_id: str) -> str:
    """Return the decision id that the request of this key must have."""
    return hashlib.blake2b(key + b"/" + request_id.encode(), digest_size=16).hexdigest()


def check_records(
    verdict: Verdict, sent: Sequence[Sent], evidence: Evidence, effective: dict[str, Decided]
) -> Expected:
    """Check requests, decisions, outcomes and dead letters; return what the ledger must hold."""
    kinds = _check_sent(verdict, sent, evidence)
    expected = Expected()
    wanted = _expect_requests(verdict, evidence.requests, kinds, expected)
    _check_decisions(verdict, evidence, effective, wanted)
    _expect_outcomes(evidence.outcomes, kinds, effective, expected)
    _check_letters(verdict, evidence, expected)
    return expected


def _check_sent(
    verdict: Verdict, sent: Sequence[Sent], evidence: Evidence
) -> dict[tuple[str, str], str]:
    """What was acknowledged lies where the broker said, and nothing lies there that was not sent.

    Returns the kind of each record by topic and digest.
    """
    kinds = {(s.topic, s.sha256): s.kind for s in sent}
    found = {r.place: r.digest for r in (*evidence.requests, *evidence.outcomes)}
    for record in sent:
        if record.place is not None and found.get(record.place) != record.sha256:
            verdict.find(f"{record.place}: acknowledged, but not what lies there", lost=1)
    for place, digest in found.items():
        if (place[0], digest) not in kinds:
            verdict.find(f"{place}: nobody sent it", doubled=1)
    return kinds


def _reason_of(kinds: dict[tuple[str, str], str], record: Record) -> str:
    """Return why a record that was sent as poison must be refused, or nothing."""
    kind = kinds.get((record.place[0], record.digest), "")
    return kind.removeprefix("poison:") if kind.startswith("poison:") else ""


def _expect_requests(
    verdict: Verdict, records: Sequence[Record], kinds: dict[tuple[str, str], str],
    expected: Expected,
) -> dict[str, tuple[Record, dict[str, Any]]]:  # fmt: skip
    """Return the request that counts for each decision id: the first that can be accepted."""
    first: dict[str, tuple[Record, dict[str, Any]]] = {}
    for record in records:
        reason = _reason_of(kinds, record)
        if reason:
            expected.letters[record.place] = reason
            continue
        fields = json.loads(record.value)
        if "deadline_ms" in fields:
            # Also if it is a conflict: one dead letter a record.
            expected.letters[record.place] = "deadline_past"
        known = first.setdefault(identity_of(record.key, fields["request_id"]), (record, fields))
        if known[0].value != record.value:
            expected.letters.setdefault(record.place, "conflict")
    return first


def _check_decisions(
    verdict: Verdict, evidence: Evidence, effective: dict[str, Decided],
    wanted: dict[str, tuple[Record, dict[str, Any]]],
) -> None:  # fmt: skip
    """Each request has one decision, and each decision lies where its writer had foretold."""
    for identity, (record, fields) in wanted.items():
        decided = effective.get(identity)
        if decided is None:
            verdict.find(f"{record.place}: {fields['request_id']} has no decision", lost=1)
            continue
        said = (decided.request_id, decided.budget, decided.partition)
        if said != (fields["request_id"], fields["budget"], record.place[1]):
            verdict.find(f"{identity}: decided as {said}, lies at {record.place}")
        if (decided.arm is None) == (decided.rejected is None):
            verdict.find(f"{identity}: neither an arm nor a rejection, or both")
    for identity in effective.keys() - wanted.keys():
        verdict.find(f"{effective[identity].request_id}: decided, but nobody sent it", doubled=1)
    written: Counter[tuple[int, ...]] = Counter()
    for decided in evidence.decisions:
        place = f"{DECISIONS}/{decided.partition}/{decided.offset}"
        foretold = decided.offsets.decisions + written[decided.call]
        written[decided.call] += 1
        if decided.offset != foretold:
            verdict.find(f"{place}: meant for {foretold}: another worker wrote what is before it")
        if effective[decided.decision_id] is not decided:
            verdict.find(f"{place}: {decided.request_id} was decided before", doubled=1)
        if home_partition(decided.root.encode(), PARTITIONS) != decided.partition:
            verdict.find(f"{decided.decision_id}: decided in partition {decided.partition}")


def _expect_outcomes(
    records: Sequence[Record], kinds: dict[tuple[str, str], str], effective: dict[str, Decided],
    expected: Expected,
) -> None:  # fmt: skip
    """Say which outcome counts for each decision, and which must be refused and why."""
    clock_ms: dict[int, int] = defaultdict(int)
    known: dict[str, dict[str, Any]] = defaultdict(dict)
    last_ms = max((record.at_ms for record in records), default=0)
    for record in records:
        partition = record.place[1]
        clock_ms[partition] = max(clock_ms[partition], record.at_ms)
        reason = _reason_of(kinds, record)
        if reason:
            expected.letters[record.place] = reason
            continue
        fields = json.loads(record.value)
        identity = identity_of(record.key, fields["request_id"])
        decided = effective.get(identity)
        refusal: str | None = ""
        if decided is None:
            # It waits for its decision for a minute, and is refused by a later record.
            sure = record.at_ms + PARK_MS + 1_000 < last_ms
            refusal = "unknown_request" if sure else None
        elif decided.arm is None:
            refusal = "rejected_request"
        elif decided.decided_ms > record.at_ms + PARK_MS:
            refusal = "unknown_request"
        if refusal == "" and decided is not None:
            parts = known[identity]
            conflicts = [
                parts.setdefault(part, content) != content
                for part, content in _parts(fields).items()
            ]
            if parts.get("usage_at") is None and "usage" in parts:
                parts["usage_at"] = record.place[2]
                cost = cost_nanousd(decided, fields)
                offset = record.place[2]
                expected.usage[identity] = Usage(offset, clock_ms[partition], cost)
            refusal = "conflict" if any(conflicts) else ""
        if refusal != "":
            expected.letters[record.place] = refusal


def _parts(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the parts of an outcome that count once each."""
    parts: dict[str, Any] = {}
    if "usage" in fields or "cost_nanousd" in fields:
        parts["usage"] = (
            {"cached_tokens": 0} | fields.get("usage", {}),
            fields.get("cost_nanousd"),
        )
    if "reward" in fields:
        parts["reward"] = fields["reward"]
    return parts


def cost_nanousd(decided: Decided, fields: dict[str, Any]) -> int:
    """Return what a call cost: what was billed, or its tokens at the pinned price, rounded up."""
    if "cost_nanousd" in fields:
        return int(fields["cost_nanousd"])
    price, usage = decided.price, fields["usage"]
    assert price is not None
    cached = usage.get("cached_tokens", 0)
    cached_price = price.input if price.cached is None else price.cached
    thousandths = (usage["prompt_tokens"] - cached) * price.input
    thousandths += cached * cached_price + usage["completion_tokens"] * price.output
    return -(-int(thousandths) // 1_000)


def _check_letters(verdict: Verdict, evidence: Evidence, expected: Expected) -> None:
    """Each record that must be refused has its dead letter, and no other has one."""
    digests = {r.place: r.digest for r in (*evidence.requests, *evidence.outcomes)}
    for place, reason in expected.letters.items():
        letters = evidence.letters.get(place)
        if letters is None:
            if reason is not None:
                verdict.find(f"{place}: no dead letter, wanted {reason}", lost=1)
        elif reason is not None and letters[0].reason != reason:
            verdict.find(f"{place}: refused as {letters[0].reason}, not as {reason}")
        elif letters[0].sha256 != digests[place]:
            verdict.find(f"{place}: its dead letter names other content")
    for place, letters in evidence.letters.items():
        if len(letters) > 1:
            reasons = [letter.reason for letter in letters]
            verdict.find(f"{place}: {len(letters)} dead letters, {reasons}", doubled=1)
        if place[0] in (REQUESTS, OUTCOMES) and place not in expected.letters:
            verdict.find(f"{place}: a good record was refused as {letters[0].reason}", lost=1)
