"""From what the core decided to records, a batch at a time.

A record is built from columns: making a struct by name for each decision would take longer than
deciding it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from typing import Any

import msgspec
from msgspec import NODEFAULT
from numpy.typing import NDArray

from policy.choices import Choices
from policy.decide import Decided
from policy.why_not import WHY_NOT
from streams.records import Candidates, Decision, PriceTag, Seen, Waiting, fields_of

_FIELDS = msgspec.structs.fields(Decision)
_DEFAULTS = {f.name: f.default_factory if f.default is NODEFAULT else f.default for f in _FIELDS}
_Row: Any = msgspec.defstruct(
    "_Row",
    fields_of(Decision, lambda _: Any),
    omit_defaults=True,
    gc=False,
)
"""A decision whose fields are given in their order; it encodes as :class:`Decision` does."""
_Columns: Any = msgspec.defstruct(
    "_Columns", [(f.name, Any) for f in msgspec.structs.fields(Candidates)], gc=False
)
"""The candidates of a decision, whose columns may be encoded already."""
_encoder = msgspec.json.Encoder()
_BLOCK = 16
"""Rows of numbers that are made at once: enough for numpy, few enough for a cache."""


def decision_records(
    decided: Decided, *, policy: str, features: str, catalog: int, statistics: int, seed: int,
    ttl_ms: int,
) -> list[bytes]:  # fmt: skip
    """Return the decisions of a round as JSON, in the order of their offsets."""
    choices = decided.choices
    if not len(choices):
        return []
    requests, rows = choices.requests, choices.rows.tolist()
    count = len(requests)
    arms = [*(arm.arm for arm in choices.arms), None]
    prices = [*(_tag(arm.price) for arm in choices.arms), None]
    column = choices.column.tolist()
    expires_ms = decided.now_ms + ttl_ms
    seen = zip(
        requests.offsets, repeat(decided.batch), repeat(decided.outcomes), repeat(catalog),
        repeat(statistics), repeat(decided.first_offset), repeat(decided.curve_at),
    )  # fmt: skip
    by_name = {
        "v": repeat(_DEFAULTS["v"]),
        "decision_id": [id_.hex() for id_ in requests.ids],
        "request_id": requests.names,
        "budget": requests.budgets,
        "decided_ms": repeat(decided.now_ms),
        "offsets": [Seen(*offsets) for offsets in seen],
        "arm": [arms[c] for c in column],
        "rejected": [choices.rejected.get(row) for row in range(count)],
        "input_tokens": requests.input_tokens.tolist(),
        "max_output_tokens": choices.max_output_tokens.tolist(),
        "reserved_nanousd": choices.reserved_nanousd.tolist(),
        "expires_ms": [expires_ms if c >= 0 else 0 for c in column],
        "price": [prices[c] for c in column],
        "reward": choices.reward.round(6).tolist(),
        "cost_nanousd": choices.cost_nanousd.tolist(),
        "propensity": choices.propensity.tolist(),
        "explored": choices.explored.tolist(),
        "segment": requests.segments,
        "policy": repeat(policy),
        "features": repeat(features),
        "seed": repeat(seed),
        "candidates": _candidates(choices, column),
        "budgets": choices.positions,
        "waiting": _waiting(decided, count),
    }
    # One after the other, as many as there are requests, in C. Each is encoded, and its numbers
    # are freed, before the next is made: with many arms those of all would not fit the
    # processor's cache. Nor are they encoded together: a buffer of all their megabytes would be
    # grown, copied and cut apart.
    structs: Iterator[Any] = map(_Row, *(by_name[f.name] for f in _FIELDS))
    if len(rows) < count:
        kept = set(rows)
        structs = (struct for row, struct in enumerate(structs) if row in kept)
    return [_encoder.encode(struct) for struct in structs]


def _waiting(decided: Decided, count: int) -> list[Waiting | None]:
    """Return for each request what a replay must know of those that wait: for the first decided."""
    found: list[Waiting | None] = [None] * count
    if decided.waited or decided.waiting_before:
        tried = sorted(request.offset for request in decided.waited)
        found[decided.choices.rows.item(0)] = Waiting(
            before=decided.waiting_before, fresh=decided.fresh_from, tried=tried
        )
    return found


def _candidates(choices: Choices, column: Sequence[int]) -> Iterable[Any]:
    """Return the columns of each request's candidates."""
    rounds = choices.rounds
    if not choices.arms:
        return repeat(_DEFAULTS["candidates"], len(column))
    # What is alike for many is encoded once. A score of minus infinity becomes null.
    arms = msgspec.Raw(_encoder.encode([arm.arm for arm in choices.arms]))
    # Six digits: more would double the record and say nothing.
    return map(
        _Columns,
        repeat(arms),
        _rows(rounds.reward.round(6)),
        _rows(rounds.cost_nanousd),
        _rows(rounds.bound_nanousd),
        _rows(rounds.score.round(6)),
        _why_not(choices, column),
    )


def _rows(values: NDArray[Any]) -> Iterator[list[Any]]:
    """Return the rows of an array as lists, made when they are asked for."""
    for start in range(0, len(values), _BLOCK):
        yield from values[start : start + _BLOCK].tolist()


def _why_not(choices: Choices, column: Sequence[int]) -> list[Any]:
    """Return for each request why each of its arms was not chosen."""
    codes, width = choices.rounds.why_not.tobytes(), choices.rounds.why_not.shape[1]
    count = len(column)
    if choices.rounds.uniform_why:
        rows = [codes[:width]] * count
    else:
        rows = [codes[row * width : (row + 1) * width] for row in range(count)]
    for row, own in choices.why_not.items():
        if own:
            rows[row] = bytes(own)
    cases = list(zip(rows, column, strict=True))
    words = {case: _words(*case) for case in set(cases)}
    return [words[case] for case in cases]


def _words(codes: bytes, chosen: int) -> Any:
    words = [WHY_NOT[code] for code in codes]
    if chosen >= 0:
        words[chosen] = ""
    return msgspec.Raw(_encoder.encode(words))


def _tag(price: Any) -> PriceTag | None:
    if price is None:
        return None
    return PriceTag(price.version, price.input, price.output, price.cached)
