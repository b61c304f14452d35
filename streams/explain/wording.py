"""Records and numbers in words: for ``tail``, ``explain`` and the other commands."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal

from policy.money import format_usd
from policy.terms import Arm
from streams.records import Candidate, Decision, Request

REJECTIONS: Mapping[str, str] = {
    "deadline": "its deadline had passed",
    "no_arm": "no arm could be chosen for it",
    "over_ceiling": "every arm's expected cost was over a per-request ceiling of its budgets",
    "budget_exhausted": (
        "no arm fits into what its budgets have left, even if all money in flight came back"
    ),
    "budget_busy": "the money it needed was in flight and did not come back while it waited",
}
"""Why a decision is a rejection."""

ADVICE: Mapping[str, str] = {
    "undecodable": "the bytes are not JSON",
    "wrong_type": "a field has another type than the schema (`tollway asyncapi`)",
    "missing_field": "a field that the schema needs is missing (`tollway asyncapi`)",
    "unknown_field": "a field is not in the schema; it may be misspelt (`tollway asyncapi`)",
    "range": "a value is out of range",
    "too_large": "the record is larger than Tollway reads; keep such a prompt in a store",
    "empty": "the record has a key but no value",
    "nul": "NUL characters are refused",
    "features": "give exactly one of prompt, features and features_b64, as the catalog's encoder "
    "wants it",
    "feature_length": "the features have another length than the catalog's policy entry says",
    "unknown_budget": "declare the budget with `tollway catalog apply`, or correct its name",
    "unknown_arm": "the request allows an arm that the catalog does not have",
    "wrong_key": "the record's key must be the root of the budget",
    "deadline_past": "it was read after its deadline",
    "conflict": "a record before it says otherwise under this id; only the first counts",
    "unknown_request": "no decision for this request came in time",
    "rejected_request": "the request was rejected, so nothing can be settled",
    "other_decision": "the decision_id is not the one of this request",
    "empty_outcome": "an outcome must bring usage, cost, reward or an error",
}
"""What a dead letter's reason means, and what to do about it."""

_WHY_NOT: Mapping[str, str] = {
    "score": "a lower score",
    "unpriced": "it has no price in the catalog",
    "undeployed": "it is not deployed",
    "not_allowed": "the request does not allow it",
    "capability": "it lacks a capability that the request needs",
    "context": "the request does not fit its context",
    "latency": "it was slower of late than the request allows",
    "cap": "its bound did not fit into the budgets",
    "ceiling": "its expected cost was over a per-request ceiling",
    "policy": "the policy does not use it in this stage",
}


def clock(at_ms: int) -> str:
    """Return a time as people read it.

    Examples
    --------
    >>> clock(1_763_787_845_123)
    '2025-11-22 05:04:05.123 UTC'
    """
    at = datetime.fromtimestamp(at_ms // 1_000, UTC)
    return f"{at:%Y-%m-%d %H:%M:%S}.{at_ms % 1_000:03d} UTC"


def span(duration_ms: int) -> str:
    """Return a duration as people read it.

    Examples
    --------
    >>> span(45), span(3_210), span(600_000), span(7_260_000)
    ('45 ms', '3.2 s', '10 min', '2 h 1 min')
    """
    if duration_ms < 0:
        return f"-{span(-duration_ms)}"
    if duration_ms < 1_000:
        return f"{duration_ms} ms"
    if duration_ms < 120_000:
        return f"{duration_ms / 1_000:.1f} s"
    minutes = duration_ms // 60_000
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def per_million(price_microusd: int) -> str:
    """Return a price in dollars per million tokens.

    Examples
    --------
    >>> per_million(150_000), per_million(3_000_000), per_million(0)
    ('$0.15', '$3', '$0')
    """
    return f"${(Decimal(price_microusd) / 1_000_000).normalize():f}"


def usd(amount_nanousd: int) -> str:
    """Return dollars; nothing is ``$0``."""
    return format_usd(amount_nanousd) if amount_nanousd else "$0"


def share(part: int, whole: int) -> str:
    """Return a part in percent of the whole."""
    return f"{100 * part / whole:.1f} %" if whole else "all"


def safe(text: str | bytes, limit: int = 80) -> str:
    r"""Return text that cannot disturb a terminal, at most ``limit`` characters of it.

    Examples
    --------
    >>> safe("plain"), safe("a\x1b[31m"), safe(b"\xff{", 80), safe("abcdef", 3)
    ('plain', 'a\\x1b[31m', '\\xff{', 'abc…')
    """
    # Text is cut before it is escaped: a record may be long.
    cut = text[: limit + 1]
    shown = cut.decode(errors="backslashreplace") if isinstance(cut, bytes) else cut
    escaped = "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown[:limit]
    )
    return escaped + ("…" if len(text) > limit else "")


def content(request: Request) -> str:
    """Return what a request asks about, by its size."""
    if request.prompt is not None:
        return f"a prompt of {len(request.prompt):,} characters"
    if request.features is not None:
        return f"{len(request.features)} features"
    return (
        "features in base64" if request.features_b64 is not None else "neither prompt nor features"
    )


def why_not(
    candidate: Candidate,
    winner: Candidate | None,
    request: Request | None = None,
    arm: Arm | None = None,
) -> str:
    """Return why an arm was not chosen, with what is known of the request and of the arm."""
    reason = candidate.why_not
    if reason == "score" and winner is not None:
        if candidate.score is not None and winner.score is not None:
            return f"its score is {winner.score - candidate.score:.3f} lower"
    elif reason == "cap":
        return f"its bound of {usd(candidate.bound_nanousd)} did not fit into the budgets"
    elif request is not None and reason == "not_allowed":
        return f"the request allows only {', '.join(request.arms or []) or 'no arm'}"
    elif request is not None and reason == "latency":
        return f"it was slower of late than {span(request.latency_ms_max or 0)}"
    elif request is not None and arm is not None and reason == "capability":
        return f"it cannot {', '.join(sorted(set(request.capabilities) - arm.capabilities))}"
    elif request is not None and arm is not None and reason == "context":
        tokens = request.input_tokens + request.max_output_tokens
        return f"{tokens:,} tokens do not fit its context of {arm.context_tokens_max or 0:,}"
    return _WHY_NOT.get(reason, reason)


def price_of_request(decision: Decision) -> tuple[float, str]:
    """Return the dual price at which the arms were compared, and the budget that set it."""
    if not decision.budgets:
        return 0.0, ""
    dearest = max(decision.budgets, key=lambda position: position.dual_price)
    return dearest.dual_price, dearest.budget
