"""``tollway send``: requests, checked before any is sent."""

from __future__ import annotations

import asyncio
import json
import sys
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from msgspec import Struct

from streams import lines
from streams.commands.common import fail, kafka_of, ledger_of
from streams.commands.talking import Json, errors_told, need_topics
from streams.explain.wording import clock, safe
from streams.records import BadRecordError, Request
from streams.sending import Answer, check_line, check_request, complete, send, send_and_wait

Budget = Annotated[str | None, typer.Option(help="Budget path, such as acme/search/k1.")]
Id = Annotated[str | None, typer.Option("--id", help="Id of the request; left out: a new one.")]
Prompt = Annotated[str | None, typer.Option(help="Text of the prompt.")]
Features = Annotated[
    str | None, typer.Option(help="Features: a JSON list, or a file that holds one.")
]
File = Annotated[
    str | None,
    typer.Option(
        help="Requests, one JSON object a line; - for standard input. The other options fill in "
        "what a line leaves out."
    ),
]
InputTokens = Annotated[
    int | None,
    typer.Option(
        help="Tokens of the prompt; left out: a third of its bytes, which for English is on the "
        "high side."
    ),
]
OutputTokens = Annotated[
    int | None, typer.Option(help="The most tokens that the answer may have; left out: 1000.")
]
Arms = Annotated[list[str] | None, typer.Option("--arm", help="Only this arm; may be repeated.")]
Capabilities = Annotated[
    list[str] | None,
    typer.Option("--capability", help="Only arms that can do this; may be repeated."),
]
Latency = Annotated[
    int | None, typer.Option("--latency-ms", help="Only arms faster than this on average.")
]
Deadline = Annotated[
    int | None, typer.Option(help="Rejected when read after this time, in ms since the epoch.")
]
Segment = Annotated[str | None, typer.Option(help="Segment of the reward windows.")]
Wait = Annotated[bool, typer.Option("--wait", help="Wait for the decisions and print them.")]
Timeout = Annotated[float, typer.Option(help="Seconds to wait at most.", min=0.1)]

_OUTPUT_TOKENS = 1_000


def register(app: typer.Typer) -> None:
    """Add ``send``."""

    @app.command(name="send")
    def send_command(
        ctx: typer.Context,
        budget: Budget = None,
        request_id: Id = None,
        prompt: Prompt = None,
        features: Features = None,
        file: File = None,
        input_tokens: InputTokens = None,
        max_output_tokens: OutputTokens = None,
        arms: Arms = None,
        capabilities: Capabilities = None,
        latency_ms_max: Latency = None,
        deadline_ms: Deadline = None,
        segment: Segment = None,
        wait: Wait = False,
        timeout: Timeout = 60.0,
        as_json: Json = False,
    ) -> None:
        """Send requests, checked before any is sent.

        With --wait the exit code is 0 if each got a decision, also one that names no model
        ("rejected"), and 1 if one was refused (a dead letter) or stayed without a decision. Of a
        request that was decided before, the decision that there is is printed.
        """
        fields = _given(
            budget=budget,
            input_tokens=input_tokens,
            max_output_tokens=_OUTPUT_TOKENS if max_output_tokens is None else max_output_tokens,
            arms=arms or None,
            capabilities=capabilities or None,
            latency_ms_max=latency_ms_max,
            deadline_ms=deadline_ms,
            segment=segment,
        )
        own = _given(request_id=request_id, prompt=prompt, features=_features_of(features))
        if file is not None and own:
            fail("--file brings its own prompts, features and ids")
        if file is None:
            _need_options({**fields, **own})
            requests = [_request_of({**fields, **own})]
        else:
            requests = _requests_of(file, fields)
        kafka = kafka_of(ctx)
        with errors_told(kafka):
            asyncio.run(need_topics(kafka))
            if wait:
                answers = send_and_wait(
                    kafka, requests, timeout_s=timeout, database_url=ledger_of(ctx)
                )
                ok = asyncio.run(_tell(answers, timeout, as_json=as_json))
            else:
                asyncio.run(_send(kafka, requests, as_json=as_json))
                ok = True
        raise typer.Exit(0 if ok else 1)


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _need_options(given: Mapping[str, Any]) -> None:
    """End with the options that a request lacks: who types none of its fields' names knows none."""
    if "budget" not in given:
        fail("no --budget is given; give the path of the budget that pays, such as acme/search/k1")
    asked = given.keys() & {"prompt", "features"}
    if not asked:
        fail("nothing is asked: give --prompt or --features, or --file with requests")
    if len(asked) > 1:
        fail("--prompt and --features are both given; give one of them")
    if "features" in given and "input_tokens" not in given:
        fail("--features needs --input-tokens: features do not tell how long the prompt is")


async def _send(kafka: str, requests: Sequence[Request], *, as_json: bool) -> None:
    for request, place in zip(requests, await send(kafka, requests), strict=True):
        where = {"topic": place.topic, "partition": place.partition, "offset": place.offset}
        if as_json:
            typer.echo(json.dumps({"request_id": request.request_id, **where}))
        else:
            at = "/".join(map(str, where.values()))
            typer.echo(f"{request.request_id}  {request.budget}  sent, {at}")


async def _tell(answers: AsyncIterator[Answer], timeout_s: float, *, as_json: bool) -> bool:
    """Print answers as they come; return whether all are decisions."""
    ok = True
    async for answer in answers:
        ok &= answer.decision is not None
        typer.echo(json.dumps(_as_dict(answer)) if as_json else _answer(answer, timeout_s))
    return ok


def _answer(answer: Answer, timeout_s: float) -> str:
    request = answer.request
    if answer.decision is not None:
        before = f"  (decided before, at {clock(answer.decision.decided_ms)})"
        return lines.decision(answer.decision) + (before if answer.is_former else "")
    head = f"{request.request_id}  {request.budget}  "
    if answer.letter is not None:
        reason = answer.letter.reason
        advice = "; see `tollway catalog show`" if reason == "unknown_budget" else ""
        return f"{head}refused, {reason}: {safe(answer.letter.detail, 300)}{advice}"
    return (
        f"{head}no decision within {timeout_s:g} s; `tollway explain {request.request_id}` says "
        "whether it waits"
    )


def _as_dict(answer: Answer) -> dict[str, Any]:
    return {
        "request_id": answer.request.request_id,
        "decision": _builtins(answer.decision),
        "dead_letter": _builtins(answer.letter),
        "decided_before": answer.is_former,
    }


def _builtins(record: Struct | None) -> Any:
    return None if record is None else msgspec.to_builtins(record)


def _requests_of(file: str, defaults: Mapping[str, Any]) -> list[Request]:
    try:
        text = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as exc:
        fail(f"{file}: {exc.strerror}")
    requests = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                requests.append(check_line(line, {"request_id": _new_id(), **defaults}))
            except BadRecordError as exc:
                fail(f"{file}:{number}: {exc}; nothing was sent")
    if not requests:
        fail(f"{file}: there is no request in it")
    return requests


def _request_of(fields: Mapping[str, Any]) -> Request:
    try:
        return check_request(complete({"request_id": _new_id(), **fields}))
    except BadRecordError as exc:
        fail(f"request: {exc}")


def _features_of(given: str | None) -> Any:
    """Return the features as JSON has them; whether they are numbers is the record's matter."""
    if given is None:
        return None
    try:
        text = given if given.lstrip().startswith("[") else Path(given).read_text()
        return json.loads(text)
    except OSError as exc:
        fail(f"--features {given}: {exc.strerror}")
    except ValueError as exc:
        fail(f"--features {given}: not JSON: {exc}")


def _new_id() -> str:
    return uuid.uuid4().hex
