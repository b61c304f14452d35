"""From records of topics to what the core takes: checked, hashed, with features.

Records are read a batch at a time and into columns; one that is wrong is left out with its reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from policy.catalog import Catalog
from policy.outcomes import UNKNOWN, Arrivals
from policy.requests import Constraints, Incoming, Requests
from policy.segment_features import with_segments
from policy.terms import Ints
from streams.bulk import decode_outcomes, decode_requests
from streams.features import FEATURE_MAX, Encode, Features
from streams.records import (
    BadRecordError,
    Outcome,
    Request,
    request_digest,
    request_digests,
)

R = TypeVar("R", Request, Outcome)


class Raw(NamedTuple):
    """What is read of a consumer's record; the timestamp in milliseconds, by the broker."""

    key: bytes | None
    value: bytes | None
    offset: int
    timestamp: int


@dataclass(slots=True)
class _Batch(Generic[R]):
    """Records that are read together: rows of those that are good so far, reasons of the others.

    ``places`` says where a row was among all of them; ``refused`` is by that place.
    """

    places: Sequence[int]
    records: Sequence[Any]
    read: Sequence[R]
    refused: dict[int, BadRecordError]

    @classmethod
    def of(cls, records: Sequence[Any], decoded: Sequence[R | BadRecordError]) -> _Batch[R]:
        batch: _Batch[Any] = cls(range(len(records)), records, decoded, {})  # type: ignore[arg-type]
        batch.refuse({n: r for n, r in enumerate(decoded) if isinstance(r, BadRecordError)})
        return batch

    def refuse(self, wrong: Mapping[int, BadRecordError]) -> None:
        """Leave out rows, each with its reason."""
        if not wrong:
            return
        self.refused.update({self.places[row]: error for row, error in wrong.items()})
        good = [row for row in range(len(self.read)) if row not in wrong]
        self.places = [self.places[row] for row in good]
        self.records = [self.records[row] for row in good]
        self.read = [self.read[row] for row in good]


@dataclass(frozen=True, slots=True)
class Intake:
    """Reads requests and outcomes against one version of the catalog."""

    catalog: Catalog
    encode: Encode | None

    def requests(
        self, records: Sequence[Any], *, known: bool = False
    ) -> tuple[Requests, dict[int, BadRecordError]]:
        """Return the requests of these records, and which were refused.

        With ``known`` they were accepted under a former catalog, whatever the present one says.
        """
        batch = _Batch.of(records, decode_requests([record.value for record in records]))
        batch.refuse(self._misnamed(batch, known=known))
        features = Features(self.catalog.settings.given, self.encode, known)
        batch.refuse(features.add_all(batch.read))
        kept, read, refused = batch.records, batch.read, batch.refused
        roots = [request.budget.partition("/")[0] for request in read]
        ids = request_digests(roots, [request.request_id for request in read])
        matrix, finite = features.matrix()
        segments = self._segments(read)
        requests = Requests(
            offsets=[record.offset for record in kept],
            ids=ids,
            request_prints=_prints([record.value for record in kept]),
            budgets=[request.budget for request in read],
            features=with_segments(matrix, segments, self.catalog.settings),
            input_tokens=np.array([r.input_tokens for r in read], np.int64),
            max_output_tokens=np.array([r.max_output_tokens for r in read], np.int64),
            at_ms=[record.timestamp for record in kept],
            seeds=np.frombuffer(b"".join(ids), "<u8")[::2] ^ np.uint64(self.catalog.settings.seed),
            segments=segments,
            names=[request.request_id for request in read],
            constraints=_constraints(read),
        )
        if not finite.all():
            for row in np.flatnonzero(~finite).tolist():
                text = f"a feature is not within ±{FEATURE_MAX:g}"
                refused[batch.places[row]] = BadRecordError("range", text)
            requests = requests.where(finite)
        return requests, refused

    def accepted(self, records: Sequence[Any]) -> dict[int, Incoming]:
        """Return requests that were decided once, by their offsets.

        Raises
        ------
        BadRecordError
            If one of them is no request.
        """
        requests, refused = self.requests(records, known=True)
        for error in refused.values():
            raise error
        return {offset: requests.row(row) for row, offset in enumerate(requests.offsets)}

    def _segments(self, requests: Sequence[Request]) -> list[str]:
        known = {"all", *self.catalog.settings.segments}
        return [r.segment if r.segment in known else "other" for r in requests]

    def _misnamed(self, batch: _Batch[Request], *, known: bool) -> dict[int, BadRecordError]:
        """Return what is wrong with keys and names of requests, by their rows."""
        keys = [record.key for record in batch.records]
        named = list(zip(keys, [request.budget for request in batch.read], strict=True))
        found = {case: self._judged(*case, known=known) for case in set(named)}
        wrong = {row: error for row, case in enumerate(named) if (error := found[case]) is not None}
        if not known:
            declared = {arm.arm for arm in self.catalog.arms}
            for row, request in enumerate(batch.read):
                if request.arms is None or row in wrong:
                    continue
                unknown = [arm for arm in request.arms if arm not in declared]
                if unknown:
                    text = f"arm {unknown[0]!r} is not in the catalog"
                    wrong[row] = BadRecordError("unknown_arm", text)
        return wrong

    def _judged(self, key: bytes | None, budget: str, *, known: bool) -> BadRecordError | None:
        root = budget.partition("/")[0]
        if key != root.encode():
            text = f"the record's key is not the budget's root {root!r}"
            return BadRecordError("wrong_key", text)
        if not known and budget not in self.catalog.budgets:
            return BadRecordError("unknown_budget", f"budget {budget!r} is not declared")
        return None

    def outcomes(self, records: Sequence[Any]) -> tuple[Arrivals, dict[int, BadRecordError]]:
        """Return the outcomes of these records, and which were refused."""
        batch = _Batch.of(records, decode_outcomes([record.value for record in records]))
        root_of = {key: _root(key) for key in {record.key for record in records}}
        batch.refuse(_contradictory(batch, root_of))
        kept, read, refused = batch.records, batch.read, batch.refused
        roots = [root_of[record.key] for record in kept]
        ids = request_digests(roots, [outcome.request_id for outcome in read])
        return _arrivals(kept, read, ids), refused


def _constraints(requests: Sequence[Request]) -> dict[int, Constraints]:
    return {
        row: Constraints(
            arms=None if r.arms is None else frozenset(r.arms),
            capabilities=frozenset(r.capabilities),
            latency_ms_max=r.latency_ms_max,
            deadline_ms=r.deadline_ms,
        )
        for row, r in enumerate(requests)
        if r.arms is not None or r.capabilities or r.latency_ms_max or r.deadline_ms is not None
    }


def _contradictory(
    batch: _Batch[Outcome], root_of: Mapping[bytes | None, str]
) -> dict[int, BadRecordError]:
    """Return what is wrong with outcomes as a whole, by their rows."""
    wrong = {}
    for row, outcome in enumerate(batch.read):
        usage = outcome.usage
        # Most have a usage and nothing that could contradict it.
        if usage is None or usage.cached_tokens or outcome.decision_id is not None:
            error = _judged_outcome(outcome, root_of[batch.records[row].key])
            if error is not None:
                wrong[row] = error
    return wrong


def _judged_outcome(outcome: Outcome, root: str) -> BadRecordError | None:
    usage, named = outcome.usage, outcome.decision_id
    if usage is not None and usage.cached_tokens > usage.prompt_tokens:
        return BadRecordError("range", "more cached_tokens than prompt_tokens")
    if named is not None and named != request_digest(root, outcome.request_id).hex():
        return BadRecordError("other_decision", "decision_id is not that of the request")
    unsettled = usage is None and outcome.cost_nanousd is None
    if unsettled and outcome.reward is None and outcome.error is None:
        return BadRecordError("empty_outcome", "no usage, cost, reward or error")
    return None


def _arrivals(records: Sequence[Any], read: Sequence[Outcome], ids: list[bytes]) -> Arrivals:
    usages = [outcome.usage for outcome in read]
    columns = [
        _whole([None if u is None else u.prompt_tokens for u in usages]),
        _whole([None if u is None else u.completion_tokens for u in usages]),
        _whole([0 if u is None else u.cached_tokens for u in usages]),
        _whole([outcome.cost_nanousd for outcome in read]),
    ]
    # A negative zero is the same reward.
    reward = 0.0 + np.array([np.nan if o.reward is None else o.reward for o in read], np.float64)
    against = [outcome.against for outcome in read]
    rewards = _cut(reward)
    for row in [row for row, arm in enumerate(against) if arm is not None]:
        rewards[row] += (against[row] or "").encode()
    return Arrivals(
        offsets=np.array([record.offset for record in records], np.int64),
        ids=ids,
        at_ms=np.array([record.timestamp for record in records], np.int64),
        input_tokens=columns[0],
        output_tokens=columns[1],
        cached_tokens=columns[2],
        cost_nanousd=columns[3],
        usage_print=np.array(_prints(_cut(np.stack(columns, axis=1))), np.uint64),
        reward=reward,
        reward_print=np.array(_prints(rewards), np.uint64),
        latency_ms=_whole([outcome.latency_ms for outcome in read]),
        error=np.array([outcome.error is not None for outcome in read], np.bool_),
        against=against,
    )


def _whole(values: Sequence[int | None]) -> Ints:
    return np.array([UNKNOWN if value is None else value for value in values], np.int64)


def _prints(values: Sequence[bytes]) -> list[int]:
    """Return 64 bits of each value, to tell whether what came twice is the same."""
    return [xxh3_64_intdigest(value) for value in values]


def _cut(values: NDArray[Any]) -> list[bytes]:
    """Return the bytes of each row."""
    raw, size = values.tobytes(), values[:1].nbytes
    return [raw[start : start + size] for start in range(0, len(raw), size or 1)]


def _root(key: bytes | None) -> str:
    try:
        return (key or b"").decode()
    except UnicodeDecodeError:
        return ""
