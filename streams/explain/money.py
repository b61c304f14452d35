"""What became of a decided request, in words: its outcomes, what it cost, what it still holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from streams.explain.trace import Placed, Trace
from streams.explain.wording import clock, safe, share, span, usd
from streams.ledger.fold import Case
from streams.ledger.reading import booked, read_decision, reported
from streams.records import BadRecordError, Decision, Outcome, encode

_NO_EFFECT = {
    "": "says the same again, without effect",
    "other_usage": "contradicts the usage that came first, without effect",
    "other_reward": "contradicts the reward that came first, without effect",
    "other_decision": "names another decision, without effect",
    "too_early": "came too long before the decision, without effect",
    "rejected": "but the request was rejected, without effect",
}
_PARKED = "parked"


@dataclass(slots=True)
class Story:
    """How a decided request stands, by the books' own rules, told from the topics.

    ``outcome`` is the headline's end; ``effects`` says for each outcome, by offset, what it did.
    """

    status: Literal["open", "expired", "settled"] = "open"
    outcome: str = "no usage reported yet"
    cost_nanousd: int | None = None
    overrun_nanousd: int = 0
    was_expired: bool = False
    effects: dict[int, list[str]] = field(default_factory=dict)


def told(trace: Trace) -> Story:
    """Return the story of the request's decision; an empty one if there is none to read."""
    story = Story()
    case = _case(trace)
    if case is None:
        return story
    clock_ms = 0
    for outcome in trace.outcomes:
        clock_ms = max(clock_ms, outcome.at_ms)
        if outcome.record is not None:
            story.effects[outcome.offset] = _take(case, outcome, outcome.record, clock_ms)
    # The ledger knows the partition's clock; without it only this request's records show it.
    expired = any(transfer.kind == "expire" for transfer in trace.transfers)
    postings = case.due(max(clock_ms, case.decision.expires_ms + 1 if expired else 0))
    amounts = {posting.kind: posting.amount_nanousd for posting in postings}
    story.was_expired = "expire" in amounts
    if "settle" in amounts:
        story.overrun_nanousd = amounts.get("overrun", 0)
        story.cost_nanousd = amounts["settle"] + story.overrun_nanousd
        story.status = "settled"
        story.outcome = f"cost {usd(story.cost_nanousd)}"
    elif story.was_expired:
        story.status = "expired"
        story.outcome = "no usage came before its reservation expired"
    return story


def aftermath(trace: Trace) -> Iterator[str]:
    """Say what came back for the request and what that meant for its money."""
    decision = None if trace.decision is None else trace.decision.record
    story = told(trace)
    for outcome in trace.outcomes:
        since = "" if decision is None else f"{span(outcome.at_ms - decision.decided_ms)} later: "
        effects = "; ".join(story.effects.get(outcome.offset, []))
        if not _is_decided(trace):
            effects = _fate(trace, outcome)
        yield f"{since}{_content(outcome)}{': ' + effects if effects else ''}"
    if not _is_decided(trace) and any(_fate(trace, x) == _PARKED for x in trace.outcomes):
        yield "what is parked is refused once requests are read to a minute after it"
    if decision is not None and decision.arm is not None:
        yield from _money(decision, story)


def fates(trace: Trace) -> str:
    """Say how many outcomes lie where for a request without a decision, and what became of them."""
    counts = Counter(_fate(trace, outcome) for outcome in trace.outcomes)
    where = sorted({f"{outcome.topic}/{outcome.partition}" for outcome in trace.outcomes})
    total = len(trace.outcomes)
    lie = "outcome lies" if total == 1 else "outcomes lie"
    what = ", ".join(f"{count} {fate}" for fate, count in sorted(counts.items()))
    return f"{total} {lie} in {', '.join(where)}: {what}"


def _is_decided(trace: Trace) -> bool:
    return trace.decision is not None or trace.ledger_row is not None


def _fate(trace: Trace, outcome: Placed[Outcome]) -> str:
    letters = [letter.record for letter in trace.dead_letters if letter.record is not None]
    reasons = {f"{x.topic}/{x.partition}/{x.offset}": x.reason for x in letters}
    reason = reasons.get(outcome.place)
    return _PARKED if reason is None else f"refused, {reason}"


def _money(decision: Decision, story: Story) -> Iterator[str]:
    reserved = usd(decision.reserved_nanousd)
    expiry = clock(decision.expires_ms)
    if story.cost_nanousd is None:
        if story.was_expired:
            yield f"the reservation of {reserved} expired at {expiry} and counts as spent"
            yield "usage that still comes will true it up"
        else:
            yield f"no usage yet: {reserved} are held, and count as spent from {expiry} on"
            yield "the ledger books that once an outcome comes to its partition after that time"
        return
    if story.was_expired:
        yield f"the reservation had expired at {expiry} as spent; the usage trued it up"
    used = share(story.cost_nanousd, decision.reserved_nanousd)
    expected = usd(decision.cost_nanousd)
    yield f"cost {usd(story.cost_nanousd)}: {used} of what was reserved, {expected} was expected"
    if story.overrun_nanousd:
        yield f"{usd(story.overrun_nanousd)} of that is overrun, beyond the reservation"


def _case(trace: Trace) -> Case | None:
    placed = trace.decision
    if placed is None or placed.record is None:
        return None
    try:
        decision, mark = read_decision(encode(placed.record))
    except BadRecordError:
        return None
    return Case(decision=booked(decision, mark, offset=placed.offset))


def _take(case: Case, placed: Placed[Outcome], outcome: Outcome, clock_ms: int) -> list[str]:
    facts = reported(
        outcome,
        decision_id=case.decision.decision_id,
        offset=placed.offset,
        at_ms=placed.at_ms,
        clock_ms=clock_ms,
    )
    effects = [
        f"the {copy.part} {_NO_EFFECT.get(copy.reason, copy.reason)}" for copy in case.take(facts)
    ]
    if case.usage is facts:
        effects.append("settles")
    if case.reward is facts:
        effects.append("teaches")
    return effects


def _content(placed: Placed[Outcome]) -> str:
    outcome = placed.record
    if outcome is None:
        return f"an outcome that cannot be read ({safe(placed.problem, 200)})"
    parts = []
    if outcome.usage is not None:
        usage = outcome.usage
        cached = f" ({usage.cached_tokens:,} cached)" if usage.cached_tokens else ""
        parts.append(
            f"{usage.prompt_tokens:,} prompt tokens{cached} and {usage.completion_tokens:,} "
            "completion tokens"
        )
    if outcome.cost_nanousd is not None:
        parts.append(f"billed {usd(outcome.cost_nanousd)}")
    if outcome.reward is not None:
        parts.append(f"reward {outcome.reward:g}")
    if outcome.latency_ms is not None:
        parts.append(f"latency {span(outcome.latency_ms)}")
    if outcome.error is not None:
        parts.append(f"error '{safe(outcome.error, 120)}'")
    return ", ".join(parts)
