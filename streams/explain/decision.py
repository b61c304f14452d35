"""What a decision says of itself, in words: the choice, every arm, the budgets."""

from __future__ import annotations

from collections.abc import Iterator

from policy.money import NANO_PER_USD
from streams.explain.trace import Trace
from streams.explain.wording import (
    REJECTIONS,
    clock,
    per_million,
    price_of_request,
    share,
    span,
    usd,
    why_not,
)
from streams.records import Candidate, Decision, Request

_WAITED_MS = 1_000
"""A decision's clock may be this far after its request without the request having waited."""


def decided(trace: Trace, decision: Decision) -> Iterator[str]:
    """Say what was decided and why: the arm against the next best, or why none."""
    request = None if trace.request is None else trace.request.record
    yield from _when(trace, decision)
    if decision.arm is None:
        reason = decision.rejected or ""
        yield f"rejected: {REJECTIONS.get(reason, reason)}; nothing is reserved"
    else:
        yield from _choice(decision)
        yield from _reservation(decision, request)
    offsets = decision.offsets
    yield (
        f"by policy {decision.policy}, features {decision.features}, having seen the catalog up to "
        f"{offsets.catalog}, outcomes up to {offsets.outcomes}, statistics up to "
        f"{offsets.statistics}"
    )


def _when(trace: Trace, decision: Decision) -> Iterator[str]:
    if trace.request is None or trace.decision is None:
        yield f"at {clock(decision.decided_ms)}"
        return
    yield f"{span(trace.decision.at_ms - trace.request.at_ms)} after it was asked"
    waited_ms = decision.decided_ms - trace.request.at_ms
    if trace.overtaken or decision.rejected == "budget_busy":
        yield f"it waited {span(waited_ms)} for money in flight; later requests were decided before"
    elif waited_ms >= _WAITED_MS:
        yield (
            f"by a clock {span(waited_ms)} after the request: it waited for money in flight, "
            "or the worker came late to it"
        )


def _choice(decision: Decision) -> Iterator[str]:
    chosen = next((c for c in decision.candidates if c.arm == decision.arm), None)
    price, budget = price_of_request(decision)
    if chosen is None:
        yield f"{decision.arm}"
        return
    yield (
        f"{chosen.arm}: expected reward {chosen.reward:.3f} for {usd(chosen.cost_nanousd)}, worth "
        f"{_worth(chosen, price):.3f} at the dual price"
    )
    if price > 0:
        yield f"dual price λ = {price:.4g} reward per dollar, set by budget {budget}"
    else:
        yield "dual price λ = 0: money was no constraint"
    others = [c for c in decision.candidates if c.arm != chosen.arm and c.score is not None]
    if not others:
        yield "no other arm could be chosen"
    else:
        second = max(others, key=lambda c: c.score or 0.0)
        yield from _against(decision, chosen, second, price)
    if decision.explored:
        yield (
            "explored: chance put this arm first to learn about it, not the estimates "
            f"(probability {decision.propensity:.1%})"
        )
    elif decision.propensity < 1.0:
        yield f"probability that it was put first: {decision.propensity:.1%}"


def _against(
    decision: Decision, chosen: Candidate, second: Candidate, price: float
) -> Iterator[str]:
    mine, other = _worth(chosen, price), _worth(second, price)
    skipped = second.why_not in ("cap", "ceiling")
    rank = "preferred, but passed over" if skipped else "runner-up"
    yield (
        f"{rank}: {second.arm}, reward {second.reward:.3f} - {price:.4g} x "
        f"${second.cost_nanousd / NANO_PER_USD:.6f} = {other:.3f} "
        f"({other - mine:+.3f}){', ' + why_not(second, chosen, None) if skipped else ''}"
    )
    if skipped or decision.explored or chosen.score is None or second.score is None:
        return
    if decision.policy == "pareto" and abs(chosen.score - mine) >= 0.0005:
        yield (
            "the policy adds to each arm for what is uncertain about it: "
            f"{chosen.score - mine:+.3f} here, {second.score - other:+.3f} for the runner-up"
        )
    elif decision.policy != "pareto":
        yield f"policy {decision.policy} scores them {chosen.score:.3f} and {second.score:.3f}"


def _reservation(decision: Decision, request: Request | None) -> Iterator[str]:
    price = decision.price
    assert price is not None
    cached = "" if price.cached is None else f", {per_million(price.cached)} cached"
    yield (
        f"reserved {usd(decision.reserved_nanousd)}, the most that {decision.input_tokens:,} input "
        f"and {decision.max_output_tokens:,} output tokens can cost at price version "
        f"{price.version} ({per_million(price.input)} in, {per_million(price.output)} out{cached}, "
        "per million tokens)"
    )
    if request is not None and decision.max_output_tokens < request.max_output_tokens:
        yield (
            f"the output cap was lowered from {request.max_output_tokens:,} to "
            f"{decision.max_output_tokens:,} tokens, because the full bound did not fit into the "
            "budgets any more: the call must pass the lower one"
        )


def arms(trace: Trace, decision: Decision) -> list[str]:
    """Return every arm as the decision saw it, and why it was not chosen, as a table."""
    if not decision.candidates:
        return []
    request = None if trace.request is None else trace.request.record
    declared = {arm.arm: arm for arm in trace.catalog.arms}
    price, _ = price_of_request(decision)
    winner = next((c for c in decision.candidates if c.arm == decision.arm), None)
    ranked = sorted(
        decision.candidates,
        key=lambda c: (c.arm != decision.arm, c.score is None, -(c.score or 0.0), c.arm),
    )
    rows = [("arm", "reward", "cost", "worth", "score", "")]
    rows += [
        (
            candidate.arm,
            f"{candidate.reward:.3f}",
            # An unknown price is not zero.
            "-" if candidate.why_not == "unpriced" else usd(candidate.cost_nanousd),
            "-" if candidate.why_not == "unpriced" else f"{_worth(candidate, price):.3f}",
            "-" if candidate.score is None else f"{candidate.score:.3f}",
            "chosen"
            if candidate.arm == decision.arm
            else why_not(candidate, winner, request, declared.get(candidate.arm)),
        )
        for candidate in ranked
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return [
        f"{row[0]:<{widths[0]}}  "
        + "  ".join(f"{row[n]:>{widths[n]}}" for n in range(1, 5))
        + (f"  {row[5]}" if row[5] else "")
        for row in rows
    ]


def _worth(candidate: Candidate, price: float) -> float:
    return candidate.reward - price * candidate.cost_nanousd / NANO_PER_USD


def budgets(decision: Decision) -> Iterator[str]:
    """Say where each budget of the path stood just after the decision."""
    for at in decision.budgets:
        held = at.settled_nanousd + at.reserved_nanousd
        since = f" since {clock(at.window_start_ms)}" if at.window_start_ms else ""
        yield (
            f"{at.budget}: {usd(at.settled_nanousd)} settled + {usd(at.reserved_nanousd)} reserved "
            f"= {share(held, at.limit_nanousd)} of {usd(at.limit_nanousd)}{since}; "
            f"λ {at.dual_price:.4g}, {usd(round(at.planned_usd * NANO_PER_USD))} a request planned"
        )
