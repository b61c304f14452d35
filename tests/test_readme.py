"""The README's examples, as they stand there, against a broker and a worker."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from streams import topics
from streams.embedded import KafkaServer
from streams.records import BudgetEntry, Decision, Outcome, decode
from tests.deployment import Deployment, Placed, make_request, policy_and_arms

README = Path(__file__).parents[1] / "README.md"
SENT = {f"{kind}-{number}" for kind in ("chapter", "page") for number in (1, 2, 3)}


def examples() -> dict[str, str]:
    """Return the README's Python files by name."""
    blocks = re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```$", README.read_text(), re.M | re.S)
    return dict(blocks)


class Model(BaseHTTPRequestHandler):
    """A model behind an OpenAI-compatible endpoint; notes every call."""

    calls: list[dict[str, Any]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        assert self.path == "/v1/chat/completions"
        self.calls.append(body)
        prompt = body["messages"][0]["content"]
        if "page 3" in prompt:
            self.send_error(429)
            return
        usage = {"prompt_tokens": 12, "completion_tokens": min(7, body["max_completion_tokens"])}
        message = {"role": "assistant", "content": f"Yes: {prompt}"}
        reply = json.dumps({"choices": [{"message": message}], "usage": usage}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def model() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yield a model's address and the list of its calls."""
    calls: list[dict[str, Any]] = []
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), type("Noting", (Model,), {"calls": calls}), bind_and_activate=True
    )
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", calls
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def running(folder: Path, name: str, environment: dict[str, str]) -> Iterator[None]:
    """Run an example that goes on until it is stopped."""
    log = folder / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, name], cwd=folder, env=environment, stdout=output, stderr=output
        )
    try:
        yield
        assert process.poll() is None, log.read_text()
    finally:
        process.terminate()
        process.wait(timeout=20)


async def outcomes(deployment: Deployment, count: int) -> list[Outcome]:
    """Return the outcomes once there are so many."""
    records = await deployment.wait_records(
        topics.OUTCOMES, lambda found: len(found) >= count, what=f"{count} outcomes"
    )
    return [decode(Outcome, record.value) for record in records]


def copies(records: list[Placed]) -> list[tuple[str, bytes | None, bytes | None, int]]:
    """Return the records to write once more, each with its partition."""
    return [(record.topic, record.key, record.value, record.partition) for record in records]


def test_every_example_is_found() -> None:
    assert set(examples()) == {
        "send_aiokafka.py",
        "send_confluent.py",
        "calling.py",
        "act_aiokafka.py",
        "act_confluent.py",
    }


@pytest.mark.kafka
@pytest.mark.postgres
@pytest.mark.slow
async def test_examples_send_act_and_settle(
    servers_root: Path, database_url: str, tmp_path: Path
) -> None:
    broker = KafkaServer(servers_root / "kafka-readme")
    deployment = Deployment(broker.start(), database_url, tmp_path / "deployment")
    for name, code in examples().items():
        (tmp_path / name).write_text(code)
    environment = {**deployment.environment(), "MODEL_KEY": "none"}
    try:
        budgets = [
            BudgetEntry(budget="acme/search/k1", limit_nanousd=10**12, window="total"),
            BudgetEntry(budget="poor", limit_nanousd=1, window="total"),
        ]
        await deployment.create([*policy_and_arms(), *budgets])
        worker = deployment.start_worker()
        for name in ("send_aiokafka.py", "send_confluent.py"):
            subprocess.run(
                [sys.executable, name], cwd=tmp_path, env=environment, check=True, timeout=60
            )
        await deployment.send(make_request("poor", "too-dear", path=""))
        decided = await deployment.wait_decided({*SENT, "too-dear"}, timeout_s=120)
        assert decided.pop("too-dear").rejected == "budget_exhausted"
        # Copies are what a worker leaves behind that was taken for dead; here the test writes them.
        assert deployment.stop(worker) == 0
        records = [
            record
            for record in await deployment.read_all(topics.DECISIONS)
            if decode(Decision, record.value).request_id in SENT
        ]
        await deployment.produce(copies(records))

        for number, name in enumerate(("act_aiokafka.py", "act_confluent.py"), 1):
            with model() as (url, calls):
                more = {"MODEL_URL": url, "GROUP": name.removesuffix(".py")}
                with running(tmp_path, name, {**environment, **more}):
                    reported = await outcomes(deployment, number * len(SENT))
            _check_calls(calls, decided)
            assert Counter(o.request_id for o in reported) == dict.fromkeys(SENT, number)
        failed = [o for o in reported if o.error is not None]
        assert {(o.request_id, o.error, o.reward) for o in failed} == {("page-3", "HTTP 429", None)}

        deployment.start_worker()
        await deployment.send(make_request("acme", "after", path="/search/k1"))
        after = (await deployment.wait_decided(["after"], timeout_s=120))["after"]
        await _check_settled(deployment, after, decided, reported)
    finally:
        deployment.close()
        broker.stop()


def _check_calls(calls: list[dict[str, Any]], decided: dict[str, Decision]) -> None:
    """Each decision was acted on once, with its own model and its own output cap."""
    prompts = [call["messages"][0]["content"] for call in calls]
    assert len(prompts) == len(set(prompts)) == len(SENT)
    asked = Counter((call["model"], call["max_completion_tokens"]) for call in calls)
    assert asked == Counter(
        ((d.arm or "").partition("@")[0], d.max_output_tokens) for d in decided.values()
    )


async def _check_settled(
    deployment: Deployment, after: Decision, decided: dict[str, Decision], reported: list[Outcome]
) -> None:
    """The worker has settled each call once, at the price that its decision had pinned."""
    cost = 0
    for outcome in {o.request_id: o for o in reported}.values():
        price = decided[outcome.request_id].price
        assert price is not None
        assert outcome.usage is not None
        tokens = outcome.usage
        thousandths = tokens.prompt_tokens * price.input + tokens.completion_tokens * price.output
        cost += -(-thousandths // 1_000)
    for number in range(200):
        position = after.budgets[-1]
        if position.settled_nanousd == cost:
            return
        name = f"again-{number}"
        await deployment.send(make_request("acme", name, path="/search/k1"))
        after = (await deployment.wait_decided([name]))[name]
    raise AssertionError(f"settled {position.settled_nanousd}, the calls cost {cost}")
