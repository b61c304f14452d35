"""From what the core decided to records."""

from __future__ import annotations

from math import inf
from typing import Any

from policy.decide import Choice, Decided
from policy.eligibility import WHY_NOT
from streams.records import (
    SCHEMA,
    Decision,
    PriceTag,
    Seen,
    Waiting,
    encode,
)


def decision_records(
    decided: Decided, *, arms: list[str], policy: str, features: str, catalog: int,
    statistics: int, seed: int, ttl_ms: int,
) -> list[bytes]:  # fmt: skip
    """Return the decisions of a round as JSON, in the order of their offsets."""
    rounds = decided.rounds
    # Six digits: more would double the record and say nothing.
    reward, score = rounds.reward.round(6).tolist(), rounds.score.round(6).tolist()
    cost, bound = rounds.cost_nanousd.tolist(), rounds.bound_nanousd.tolist()
    words = [WHY_NOT[code] for code in rounds.why_not[0].tolist()] if len(rounds.why_not) else []
    records: list[bytes] = []
    for choice in decided.choices:
        row, scores = choice.row, score[choice.row]
        if choice.why_not or not rounds.uniform_why:
            why = [WHY_NOT[c] for c in choice.why_not or rounds.why_not[row].tolist()]
        else:
            why = words.copy()
        if choice.column >= 0:
            why[choice.column] = ""
        if -inf in scores:
            scores = [None if value == -inf else value for value in scores]
        records.append(
            encode(
                _decision(
                    choice,
                    # Tuples in the order of a Candidate's fields encode alike, at a third.
                    candidates=list(
                        zip(arms, reward[row], cost[row], bound[row], scores, why, strict=True)
                    ),
                    decided_ms=decided.now_ms,
                    expires_ms=decided.now_ms + ttl_ms,
                    seen=Seen(
                        request=choice.request.offset,
                        batch=decided.batch,
                        outcomes=decided.outcomes,
                        catalog=catalog,
                        statistics=statistics,
                        decisions=decided.first_offset,
                        curve=decided.curve_at,
                    ),
                    policy=policy,
                    features=features,
                    seed=seed,
                    waiting=None if records else _waiting(decided),
                )
            )
        )
    return records


def _waiting(decided: Decided) -> Waiting | None:
    """Return what a replay must know of waiting requests; None where there are none."""
    if not decided.waited and not decided.waiting_before:
        return None
    tried = sorted(request.offset for request in decided.waited)
    return Waiting(before=decided.waiting_before, fresh=decided.fresh_from, tried=tried)


def _decision(
    choice: Choice, *, candidates: list[Any], decided_ms: int, expires_ms: int, seen: Seen,
    policy: str, features: str, seed: int, waiting: Waiting | None,
) -> Decision:  # fmt: skip
    request, price = choice.request, choice.price
    return Decision(
        v=SCHEMA,
        decision_id=request.id.hex(),
        request_id=request.name,
        budget=request.budget,
        decided_ms=decided_ms,
        offsets=seen,
        arm=choice.arm,
        rejected=choice.rejected,
        input_tokens=request.input_tokens,
        max_output_tokens=choice.max_output_tokens,
        reserved_nanousd=choice.reserved_nanousd,
        expires_ms=expires_ms if choice.arm is not None else 0,
        price=None
        if price is None
        else PriceTag(price.version, price.input, price.output, price.cached),
        reward=round(choice.reward, 6),
        cost_nanousd=choice.cost_nanousd,
        propensity=choice.propensity,
        explored=choice.explored,
        segment=request.segment,
        policy=policy,
        features=features,
        seed=seed,
        candidates=candidates,
        budgets=list(choice.budgets),  # type: ignore[arg-type]  # tuples in the order of its fields
        waiting=waiting,
    )
