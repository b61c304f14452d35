"""From what the core decided to records."""

from __future__ import annotations

from math import inf

from policy.choose import WHY_NOT
from policy.decide import Choice, Decided
from streams.records import (
    SCHEMA,
    BudgetPosition,
    Candidate,
    Decision,
    PriceTag,
    Seen,
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
    records = []
    for choice in decided.choices:
        row = choice.row
        candidates = [
            Candidate(arm, r, c, b, s if s > -inf else None, WHY_NOT[why])
            for arm, r, c, b, s, why in zip(
                arms, reward[row], cost[row], bound[row], score[row], choice.why_not, strict=True
            )
        ]
        records.append(
            encode(
                _decision(
                    choice,
                    candidates=candidates,
                    decided_ms=decided.now_ms,
                    expires_ms=decided.now_ms + ttl_ms,
                    seen=Seen(
                        request=choice.request.offset,
                        batch=decided.batch,
                        outcomes=decided.outcomes,
                        catalog=catalog,
                        statistics=statistics,
                    ),
                    policy=policy,
                    features=features,
                    seed=seed,
                )
            )
        )
    return records


def _decision(
    choice: Choice, *, candidates: list[Candidate], decided_ms: int, expires_ms: int, seen: Seen,
    policy: str, features: str, seed: int,
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
        budgets=[BudgetPosition(*position) for position in choice.budgets],
    )
