"""Checks requests and outcomes as a worker will, sends them, and waits for their decisions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from streams import topics
from streams.client import Client
from streams.features import FEATURE_MAX
from streams.records import (
    BadRecordError,
    BudgetPath,
    DeadLetter,
    Decision,
    Outcome,
    Request,
    decision_id,
    decode,
    encode,
)
from streams.records.words import in_words
from streams.tailing import Place, TailReader

R = TypeVar("R", Request, Outcome)

LOOK_BACK_S = 2.0
"""After this time requests without an answer are looked for among those decided before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came for a request within the time: a decision, a dead letter, or nothing.

    ``is_former`` says that the same request had been decided before.
    """

    request: Request
    decision: Decision | None = None
    letter: DeadLetter | None = None
    is_former: bool = False


def check_request(fields: Mapping[str, Any]) -> Request:
    """Return the request that a worker would read from these fields.

    Raises
    ------
    BadRecordError
        If a worker would refuse it whatever the catalog says; the detail names the place.
    """
    request = _decode(Request, fields)
    given = (request.prompt, request.features, request.features_b64)
    if sum(part is not None for part in given) != 1:
        raise BadRecordError("features", "give exactly one of prompt, features, features_b64")
    if request.prompt is not None and "\0" in request.prompt:
        raise BadRecordError("nul", "the prompt contains a NUL character - at `$.prompt`")
    for number, value in enumerate(request.features or ()):
        if not abs(value) <= FEATURE_MAX:
            raise BadRecordError(
                "range", f"{value:g} is not within ±{FEATURE_MAX:g} - at `$.features[{number}]`"
            )
    return request


def complete(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields with the prompt's tokens, if they are not given.

    A third of the bytes is more than tokenizers make of English, which has about four to a token.
    """
    prompt = fields.get("prompt")
    if "input_tokens" in fields or not isinstance(prompt, str):
        return dict(fields)
    return {**fields, "input_tokens": len(prompt.encode()) // 3 + 1}


def check_budget(budget: str) -> None:
    """Raise :class:`BadRecordError` if this is no path of a budget."""
    try:
        msgspec.convert(budget, BudgetPath)
    except msgspec.ValidationError as exc:
        detail = in_words(f"{exc} - at `$.budget`", {"budget": budget})
        raise BadRecordError("range", detail) from None


def _decode(kind: type[R], fields: Mapping[str, Any]) -> R:
    try:
        return decode(kind, msgspec.json.encode(fields))
    except BadRecordError as exc:
        raise BadRecordError(exc.reason, in_words(exc.detail, fields)) from None


def check_outcome(fields: Mapping[str, Any]) -> Outcome:
    """Return the outcome that a worker would read from these fields.

    Raises
    ------
    BadRecordError
        If a worker would refuse it whatever was decided; the detail names the place.
    """
    outcome = _decode(Outcome, fields)
    usage = outcome.usage
    if usage is not None and usage.cached_tokens > usage.prompt_tokens:
        raise BadRecordError("range", "more cached_tokens than prompt_tokens - at `$.usage`")
    parts = (usage, outcome.cost_nanousd, outcome.reward, outcome.error)
    if all(part is None for part in parts):
        raise BadRecordError("empty_outcome", "no usage, cost, reward or error")
    return outcome


def check_line(text: str | bytes, defaults: Mapping[str, Any]) -> Request:
    """Return the request of a line of JSON; what it does not say is taken from ``defaults``."""
    try:
        fields = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise BadRecordError("undecodable", str(exc)) from None
    if not isinstance(fields, dict):
        raise BadRecordError("wrong_type", f"Expected `object`, got `{type(fields).__name__}`")
    return check_request(complete({**defaults, **fields}))


async def send(kafka: str, requests: Iterable[Request]) -> list[Any]:
    """Send requests; return where each was appended, when all are durable."""
    async with Client(kafka) as client:
        sent = [await client.send(request) for request in requests]
        return await asyncio.gather(*sent)


async def send_and_wait(
    kafka: str, requests: Sequence[Request], *, timeout_s: float, database_url: str | None = None
) -> AsyncIterator[Answer]:
    """Send requests and yield the answer of each as it comes; after the time, those without.

    A request that was decided before gets no second decision, but the one that there is.
    """
    look_back: asyncio.Task[dict[str, Decision]] | None = None
    reader = TailReader(kafka)
    await reader.start()
    try:
        positions = await reader.positions([topics.DECISIONS, topics.DEAD_LETTERS])
        places = await send(kafka, requests)
        waiting = {_identity(request): request for request in requests}
        ids = {
            (place.topic, place.partition, place.offset): _identity(request)
            for request, place in zip(requests, places, strict=True)
        }
        now = asyncio.get_running_loop().time
        deadline, look_back_at = now() + timeout_s, now() + min(LOOK_BACK_S, timeout_s / 2)
        async with aclosing(reader.follow(positions)) as following:
            async for records in following:
                for record in records:
                    identity, decision, letter = _read(record, ids)
                    request = waiting.pop(identity, None)
                    if request is not None:
                        yield Answer(request=request, decision=decision, letter=letter)
                if look_back is None and waiting and now() > look_back_at:
                    look_back = asyncio.create_task(
                        _former(kafka, dict(waiting), ends=positions, database_url=database_url)
                    )
                if look_back is not None and look_back.done():
                    for identity in waiting.keys() & look_back.result().keys():
                        request, decision = waiting.pop(identity), look_back.result()[identity]
                        yield Answer(request=request, decision=decision, is_former=True)
                if not waiting or now() > deadline:
                    break
        for request in waiting.values():
            yield Answer(request=request)
    finally:
        if look_back is not None:
            look_back.cancel()
            await asyncio.gather(look_back, return_exceptions=True)
        await reader.stop()


async def _former(
    kafka: str,
    waiting: Mapping[str, Request],
    *,
    ends: Mapping[Place, int],
    database_url: str | None,
) -> dict[str, Decision]:
    """Return the decisions, before these ends, of requests with the same id and content.

    One with other content gets a dead letter, which is waited for.
    """
    # Only who waits for long needs the ledger's libraries.
    from streams.explain.former import find_decisions
    from streams.explain.trace_reader import TraceReader

    reader = TraceReader(kafka)
    await reader.start()
    try:
        roots = {identity: _root(request) for identity, request in waiting.items()}
        found = await find_decisions(reader, roots, database_url=database_url)
        asked = {
            (place.partition, place.record.offsets.request): identity
            for identity, place in found.items()
            if place.record is not None and place.offset < ends[place.topic, place.partition]
        }

        def is_same(record: Any) -> bool:
            return bool(record.value == encode(waiting[asked[record.partition, record.offset]]))

        former = {}
        for number in {number for number, _ in asked}:
            at = [offset for partition, offset in asked if partition == number]
            for same in await reader.pick(topics.REQUESTS, number, Request, is_same, at=at):
                identity = asked[number, same.offset]
                decision = found[identity].record
                assert decision is not None
                former[identity] = decision
        return former
    finally:
        await reader.stop()


def _read(
    record: Any, ids: Mapping[tuple[str, int, int], str]
) -> tuple[str, Decision | None, DeadLetter | None]:
    """Return the decision or dead letter, and the identity of the request that it is about."""
    try:
        if record.topic == topics.DECISIONS:
            decision = decode(Decision, record.value)
            return decision.decision_id, decision, None
        letter = decode(DeadLetter, record.value)
    except BadRecordError:
        return "", None, None
    return ids.get((letter.topic, letter.partition, letter.offset), ""), None, letter


def _identity(request: Request) -> str:
    return decision_id(_root(request), request.request_id)


def _root(request: Request) -> str:
    return request.budget.partition("/")[0]
