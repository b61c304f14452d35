"""A decision in words that a person understands; pure, from what was gathered of its request."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from streams import topics
from streams.explain.decision import arms, budgets, decided
from streams.explain.money import aftermath, fates, told
from streams.explain.trace import Trace
from streams.explain.wording import ADVICE, REJECTIONS, clock, content, safe, span, usd

Status = Literal[
    "unknown", "unasked", "refused", "undecided", "rejected", "open", "expired", "settled"
]
"""Of an unasked request there are outcomes only."""


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the explanation: a heading and its lines."""

    title: str
    lines: Sequence[str]


def status(trace: Trace) -> Status:
    """Return in one word how the request stands."""
    if trace.decision is not None and trace.decision.record is not None:
        return "rejected" if trace.decision.record.arm is None else told(trace).status
    if trace.ledger_row is not None:
        return _ledger_status(trace)
    if _refused(trace):
        return "refused"
    if trace.request is not None:
        return "undecided"
    return "unasked" if trace.outcomes else "unknown"


def explain(trace: Trace) -> list[Section]:
    """Return the explanation, most important first.

    Parameters
    ----------
    trace : Trace
        Everything that was found; what is missing is said to be missing.
    """
    sections = [Section(_headline(trace), [])]
    decision = None if trace.decision is None else trace.decision.record
    if trace.request is not None:
        sections.append(Section("Asked", list(_asked(trace))))
    if decision is not None:
        sections.append(Section("Decided", list(decided(trace, decision))))
        sections.append(Section("Arms", arms(trace, decision)))
        sections.append(Section("Budgets", list(budgets(decision))))
    elif trace.ledger_row is not None:
        sections.append(Section("Decided, by the ledger", list(_from_ledger(trace))))
    sections += [
        Section("Since then", list(aftermath(trace))),
        Section("Dead letters", list(_letters(trace))),
        Section("Ledger", list(_ledger(trace))),
        Section("Records", list(_records(trace))),
    ]
    return [section for section in sections if section.lines or section is sections[0]]


def _headline(trace: Trace) -> str:
    state = status(trace)
    name = f"{trace.request_id} of {trace.root}" if trace.root else trace.request_id
    if state == "unknown":
        return f"{name}: no topic and no ledger holds a record of this id"
    if state == "refused":
        return f"{name}: refused, {_refused(trace)}; it has no decision and costs nothing"
    if state == "undecided":
        return f"{name}: received, not decided yet{f'; {fates(trace)}' if trace.outcomes else ''}"
    if state == "unasked":
        return f"{name}: not decided, no topic holds a request of this id; {fates(trace)}"
    decision = None if trace.decision is None else trace.decision.record
    if decision is None:
        row = trace.ledger_row or {}
        what = f"rejected, {row.get('rejected')}" if state == "rejected" else row.get("arm")
        return f"{name}: {what}, {state}; its decision is no longer in the topic"
    if decision.arm is None:
        reason = decision.rejected or ""
        return f"{name}: rejected, because {REJECTIONS.get(reason, reason)}"
    return f"{name}: {decision.arm}, {told(trace).outcome}"


def _refused(trace: Trace) -> str:
    letters = [letter.record for letter in trace.dead_letters if letter.record is not None]
    return next((letter.reason for letter in letters if letter.topic == topics.REQUESTS), "")


def _asked(trace: Trace) -> Iterator[str]:
    assert trace.request is not None
    place, request = trace.request, trace.request.record
    yield f"at {clock(place.at_ms)}"
    if trace.partition_of_key not in (None, place.partition):
        yield (
            f"in partition {place.partition}, but its key belongs to {trace.partition_of_key}: "
            "another key was meant, or the producer's partitioner is not Kafka's murmur2"
        )
    if request is None:
        yield f"the record cannot be read: {safe(place.problem, 300)}"
        return
    yield (
        f"{content(request)}, {request.input_tokens:,} input tokens, an answer of at most "
        f"{request.max_output_tokens:,} tokens, for budget {request.budget}"
    )
    if request.segment != "all":
        yield f"segment {request.segment}"
    if request.arms is not None:
        yield f"only from {', '.join(request.arms) or 'no arm at all'}"
    if request.capabilities:
        yield f"only from arms that can {', '.join(request.capabilities)}"
    if request.latency_ms_max is not None:
        yield f"only from arms faster than {span(request.latency_ms_max)}"
    if request.deadline_ms is not None:
        yield f"to be decided until {clock(request.deadline_ms)}"
    if status(trace) == "undecided":
        yield (
            "no decision yet: either it waits for money in flight, or no worker has read it; "
            "see `tollway status` and the worker's log"
        )


def _from_ledger(trace: Trace) -> Iterator[str]:
    row = trace.ledger_row or {}
    yield f"at {clock(row['decided_ms'])}, for budget {row['budget']}, by policy {row['policy']}"
    if row["arm"] is None:
        yield f"rejected: {REJECTIONS.get(row['rejected'], row['rejected'])}"
        return
    yield (
        f"{row['arm']}: expected reward {row['expected_reward']:.3f} for "
        f"{usd(row['expected_nanousd'])}; {usd(row['reserved_nanousd'])} reserved at price version "
        f"{row['price_version']}"
    )
    yield "the other arms and the budgets' positions are in the record only, which is gone"


def _ledger_status(trace: Trace) -> Status:
    if (trace.ledger_row or {}).get("arm") is None:
        return "rejected"
    kinds = {transfer.kind for transfer in trace.transfers}
    return "settled" if "settle" in kinds else "expired" if "expire" in kinds else "open"


def _letters(trace: Trace) -> Iterator[str]:
    for placed in trace.dead_letters:
        letter = placed.record
        if letter is not None:
            advice = ADVICE.get(letter.reason)
            yield (
                f"{letter.topic}/{letter.partition}/{letter.offset}: {letter.reason}, "
                f"{safe(letter.detail, 300)}{f' ({advice})' if advice else ''}"
            )
            if letter.reason == "unknown_budget" and trace.root:
                known = [b for b in trace.catalog.budgets if b.split("/")[0] == trace.root]
                yield f"  declared below {trace.root}: {', '.join(known) or 'nothing'}"


def _ledger(trace: Trace) -> Iterator[str]:
    for transfer in trace.transfers:
        yield (
            f"line {transfer.line}: {transfer.kind} {usd(transfer.amount_nanousd)}, "
            f"{transfer.credit_account} -> {transfer.debit_account}, {clock(transfer.event_ms)}"
        )
    for conflict in trace.conflicts:
        place = f"{conflict.topic}/{conflict.partition}/{conflict.offset}"
        yield f"{place}: the {conflict.part} does not count, {conflict.reason}"
    if trace.ledger_problem:
        yield f"the ledger could not be asked: {trace.ledger_problem}"
    elif trace.decision is not None and trace.ledger_row is None and not _is_contradicted(trace):
        yield "not booked yet: does `tollway sink` run?"


def _is_contradicted(trace: Trace) -> bool:
    """Return whether the ledger has read the decision and does not let it count."""
    assert trace.decision is not None
    places = {f"{c.topic}/{c.partition}/{c.offset}" for c in trace.conflicts}
    return trace.decision.place in places


def _records(trace: Trace) -> Iterator[str]:
    if trace.request is not None:
        yield f"request   {trace.request.place}"
    if trace.decision is not None:
        yield f"decision  {trace.decision.place}"
    for outcome in trace.outcomes:
        yield f"outcome   {outcome.place}"
    for letter in trace.dead_letters:
        yield f"letter    {letter.place}"
    if status(trace) == "unknown":
        yield "requests and decisions are kept for 7 days; looked through:"
        yield from (f"  {where}" for where in trace.searched)
