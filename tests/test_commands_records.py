"""The commands on records, as processes, against a real worker and a real ledger."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from streams import topics
from streams.__main__ import build_cli
from streams.client import root_of
from streams.records import Outcome, Usage, encode
from tests.deployment import PROGRAM, Deployment, answer, make_request

pytestmark = [pytest.mark.kafka, pytest.mark.postgres]


def run(deployment: Deployment, *arguments: str, code: int = 0) -> str:
    """Run a command in this process; return what it prints, after checking its exit code."""
    environment = {k: v for k, v in deployment.environment().items() if k.startswith("TOLLWAY_")}
    done = CliRunner().invoke(build_cli(arguments[0]), arguments, env=environment)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == code, (arguments, done.exit_code, done.stdout, done.stderr)
    return done.stderr if code == 2 else done.stdout


NO_LEDGER = {"TOLLWAY_DATABASE_URL": "postgresql://nobody@127.0.0.1:9/none"}


async def explained(deployment: Deployment, name: str, state: str, *more: str) -> dict[str, Any]:
    """Return what ``explain`` says once the request has come to this state."""
    deadline = time.monotonic() + 60
    while True:
        code = 1 if state in ("unknown", "unasked") else 0
        words = await asyncio.to_thread(
            run, deployment, "explain", name, "--json", *more, code=code
        )
        found: dict[str, Any] = json.loads(words)
        if found["status"] == state:
            return found
        assert time.monotonic() < deadline, (state, found)


async def test_one_request_from_send_to_explain(deployment: Deployment) -> None:
    root = await deployment.new_root("cmd-flow")
    name = "cmd-flow-1"
    budget = f"{root}/team/a"
    words = await asyncio.to_thread(
        run, deployment, "send", "--budget", budget, "--id", name, "--prompt", "What is 2 + 2?",
        "--max-output-tokens", "50", "--arm", "small@a", "--wait", "--json",
    )  # fmt: skip
    decision = json.loads(words)["decision"]
    assert decision["arm"] == "small@a"
    assert decision["input_tokens"] == len("What is 2 + 2?") // 3 + 1

    more = ("--prompt-tokens", "9", "--completion-tokens", "20", "--reward", "0.75")
    words = await asyncio.to_thread(run, deployment, "outcome", name, "--budget", root, *more)
    assert words.startswith(f"{name}  9+20 tokens, reward 0.75  sent, {topics.OUTCOMES}/")

    found = await explained(deployment, name, "settled")
    # 9 tokens at $0.10 and 20 at $0.40 per million.
    assert found["headline"] == f"{name} of {root}: small@a, cost $0.000008900"
    assert "medium@a" in found["words"]["Arms"][2] + found["words"]["Arms"][3]
    assert any("the request allows only small@a" in line for line in found["words"]["Arms"])
    assert [b.split(":")[0] for b in found["words"]["Budgets"]] == [root, f"{root}/team", budget]
    deadline = time.monotonic() + 60
    while not any(t["kind"] == "settle" for t in found["transfers"]):
        assert time.monotonic() < deadline, found["transfers"]
        found = await explained(deployment, name, "settled", "--budget", root)
    assert [t["amount_nanousd"] for t in found["transfers"]] == [
        decision["reserved_nanousd"], 8_900, decision["reserved_nanousd"] - 8_900,
    ]  # fmt: skip
    place = f"{deployment.partition_of(root)}/{found['decision']['offset']}"
    text = await asyncio.to_thread(run, deployment, "explain", name)
    assert f"decision  {topics.DECISIONS}/{place}" in text
    assert f"settle $0.000008900, reserved:{budget} -> spent:{budget}" in text

    lines = await asyncio.to_thread(run, deployment, "tail", "decisions", "-n", "1000")
    [line] = [line for line in lines.splitlines() if f"  {name}  " in line]
    assert f"{place}  {name}  {budget}  small@a" in line


async def test_explain_needs_no_ledger(deployment: Deployment) -> None:
    root = await deployment.new_root("cmd-bare")
    await deployment.send(make_request(root, "cmd-bare-1"))
    decided = await deployment.wait_decided(["cmd-bare-1"])
    await deployment.report(root, answer(decided["cmd-bare-1"]))
    with deployment.changed(NO_LEDGER):
        found = await explained(deployment, "cmd-bare-1", "settled")
    assert "the ledger could not be asked: connection failed" in found["words"]["Ledger"][0]
    assert found["outcomes"][0]["record"]["reward"] == 0.75


async def test_rejected_refused_and_unknown_requests_are_explained(deployment: Deployment) -> None:
    root = await deployment.new_root("cmd-poor", limit_nanousd=4)
    key = root_of(root)
    places = await deployment.produce(
        [
            (topics.REQUESTS, key, b'{"v":1,"request_id":"cmd-broken","budget":\xff secret}'),
            (topics.REQUESTS, key, encode(make_request(root, "cmd-lost", path="/no-such"))),
            (topics.OUTCOMES, key, b'{"v":1,"request_id":"cmd-poor-1","reward":7}'),
        ]
    )
    words = await asyncio.to_thread(
        run, deployment, "send", "--budget", f"{root}/team/a", "--id", "cmd-poor-1", "--features",
        json.dumps([0.0] * 64), "--input-tokens", "10", "--wait",
    )  # fmt: skip
    assert words == f"cmd-poor-1  {root}/team/a  rejected: budget_exhausted\n"
    await deployment.wait_dead(places)

    rejected = await explained(deployment, "cmd-poor-1", "rejected")
    assert rejected["transfers"] == []
    assert "did not fit into the budgets" in rejected["words"]["Arms"][1]
    [letter] = rejected["dead_letters"]
    assert letter["record"]["reason"] == "range"
    broken = await explained(deployment, "cmd-broken", "refused")
    assert "secret" not in json.dumps(broken)
    assert broken["dead_letters"][0]["record"]["reason"] == "undecodable"
    lost = await explained(deployment, "cmd-lost", "refused", "--budget", f"{root}/no-such")
    assert any(f"{root}/team/a" in line for line in lost["words"]["Dead letters"])
    unknown = await asyncio.to_thread(run, deployment, "explain", "cmd-never-sent", code=1)
    assert "no topic and no ledger holds a record of this id" in unknown
    # A bad outcome or an unreadable request shows in tail, escaped, and the rest goes on.
    shown = await asyncio.to_thread(
        run, deployment, "tail", "requests", "--from-start", "-n", "9999"
    )
    assert "\\xff" in shown
    assert shown.replace("\n", "").isprintable()


@pytest.mark.parametrize("ledger", [True, False], ids=["ledger", "topics-only"])
async def test_a_request_that_was_decided_before_is_answered_with_that(
    deployment: Deployment, ledger: bool
) -> None:
    root = await deployment.new_root(f"cmd-again-{ledger}")
    name = f"{root}-1"
    send = ("send", "--budget", f"{root}/team/a", "--id", name, "--wait", "--prompt")
    with deployment.changed({} if ledger else NO_LEDGER):
        first = await asyncio.to_thread(run, deployment, *send, "x", "--json")
        decision = json.loads(first)["decision"]
        assert not json.loads(first)["decided_before"]
        if ledger:
            await deployment.verify()
        before = time.monotonic()
        again = await asyncio.to_thread(run, deployment, *send, "x", "--json")
        assert json.loads(again) == {**json.loads(first), "decided_before": True}
        assert time.monotonic() - before < 30
        words = await asyncio.to_thread(run, deployment, *send, "x")
        assert f"{decision['arm']}, expects" in words
        assert "(decided before, at " in words
        other = await asyncio.to_thread(run, deployment, *send, "another prompt", code=1)
        assert "refused, conflict" in other


@pytest.mark.parametrize("ledger", [True, False], ids=["ledger", "topics-only"])
async def test_an_outcome_of_a_request_without_a_call_is_said_to_be_one(
    deployment: Deployment, ledger: bool
) -> None:
    root = await deployment.new_root(f"cmd-stray-{ledger}", limit_nanousd=4)
    name = f"{root}-1"
    key = root_of(root)
    report = ("outcome", name, "--budget", root, "--reward", "0.5")
    with deployment.changed({} if ledger else NO_LEDGER):
        words = await asyncio.to_thread(run, deployment, *report, code=1)
        assert words.startswith(f"{name}  reward 0.5  sent, {topics.OUTCOMES}/")
        assert f"no decision of {name} for {root} is known yet; the outcome waits" in words
        bad = b'{"v":1,"request_id":"%s","reward":7}' % name.encode()
        await deployment.wait_dead(await deployment.produce([(topics.OUTCOMES, key, bad)]))
        for more in ((), ("--budget", root)):
            found = await explained(deployment, name, "unasked", *more)
            where = f"{topics.OUTCOMES}/{deployment.partition_of(root)}"
            assert found["root"] == root
            assert found["headline"].endswith(
                f"; 2 outcomes lie in {where}: 1 parked, 1 refused, range"
            )
        await deployment.produce([(topics.OUTCOMES, b"cmd-other", bad)])
        message = await asyncio.to_thread(run, deployment, "explain", name, code=2)
        assert f"under the budget roots cmd-other, {root}: name one with --budget" in message

        await deployment.send(make_request(root, name))
        await deployment.wait_decided([name])
        if ledger:
            await deployment.verify()
        words = await asyncio.to_thread(run, deployment, *report, code=1)
        assert "without effect: the request was rejected, budget_exhausted" in words


async def test_an_id_under_two_roots_needs_the_root(deployment: Deployment) -> None:
    roots = [await deployment.new_root(f"cmd-two-{letter}") for letter in "ab"]
    await deployment.send(*(make_request(root, "cmd-shared") for root in roots))
    for root in roots:
        found = await explained(deployment, "cmd-shared", "open", "--budget", root)
        assert found["root"] == root
    message = await asyncio.to_thread(run, deployment, "explain", "cmd-shared", code=2)
    assert "under the budget roots cmd-two-a, cmd-two-b: name one with --budget" in message


async def test_a_file_is_sent_wholly_or_not_at_all(deployment: Deployment, tmp_path: Path) -> None:
    root = await deployment.new_root("cmd-file")
    before = len(await deployment.read_all(topics.REQUESTS))
    good = {"prompt": "one", "request_id": "cmd-file-1", "segment": "s"}
    file = tmp_path / "requests.jsonl"
    file.write_text(f'{json.dumps(good)}\n\n{{"prompt": "two", "max_output_tokens": -1}}\n')
    send = ("send", "--file", str(file), "--budget", f"{root}/team/b")
    message = await asyncio.to_thread(run, deployment, *send, code=2)
    assert f"{file}:3: range" in message
    assert "$.max_output_tokens" in message
    assert len(await deployment.read_all(topics.REQUESTS)) == before

    file.write_text(f"{json.dumps(good)}\n{json.dumps({**good, 'request_id': 'cmd-file-2'})}\n")
    lines = (await asyncio.to_thread(run, deployment, *send, "--wait")).splitlines()
    assert sorted(line.split()[0] for line in lines) == ["cmd-file-1", "cmd-file-2"]
    refused = await asyncio.to_thread(
        run, deployment, "send", "--budget", f"{root}/none", "--prompt", "x", "--wait", code=1
    )
    assert "refused, unknown_budget" in refused
    assert refused.endswith("is not declared; see `tollway catalog show`\n")


async def test_catalog_apply_show_and_retire(deployment: Deployment, tmp_path: Path) -> None:
    file = tmp_path / "catalog.toml"
    arm = '[[arm]]\narm = "cmd-spare@a"\ndeployed = false\n'
    price = '[[price]]\narm = "cmd-spare@a"\ninput_usd = 1\noutput_usd = {}\n'
    budget = '[[budget]]\nbudget = "cmd-budget"\nlimit_usd = "2.5"\n'
    file.write_text(arm + price.format(3) + budget)
    apply = ("catalog", "apply", str(file))

    plan = await asyncio.to_thread(run, deployment, *apply, "--dry-run")
    assert "3 would change" in plan
    assert "cmd-budget" not in await asyncio.to_thread(run, deployment, "catalog", "show")
    done = await asyncio.to_thread(run, deployment, *apply)
    assert "+ budget:cmd-budget  $2.5000 per day" in done
    file.write_text(arm + price.format(4) + budget)
    done = await asyncio.to_thread(run, deployment, *apply)
    assert "~ price:cmd-spare@a  version 2: $1 in, $4 out" in done
    assert "1 changed, 2 already so" in done
    file.write_text(budget + price.format(5) + "version = 2\n")
    message = await asyncio.to_thread(run, deployment, *apply, code=2)
    assert "version 2 is not above 2, the last; nothing was changed" in message

    entries = json.loads(await asyncio.to_thread(run, deployment, "catalog", "show", "--json"))
    spare = {"kind": "price", "arm": "cmd-spare@a", "version": 2, "input": 1_000_000,
             "output": 4_000_000}  # fmt: skip
    assert spare in entries
    await asyncio.to_thread(run, deployment, "catalog", "retire", "budget:cmd-budget")
    assert "cmd-budget" not in await asyncio.to_thread(run, deployment, "catalog", "show")
    message = await asyncio.to_thread(run, deployment, "catalog", "retire", "arm:nobody", code=2)
    assert "no entry 'arm:nobody'" in message


async def test_tail_follows_until_it_is_interrupted(deployment: Deployment) -> None:
    root = await deployment.new_root("cmd-tail")
    process = await asyncio.create_subprocess_exec(
        *PROGRAM,
        "tail",
        "outcomes",
        "--json",
        env={**deployment.environment(), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    name = "cmd-tail-1"
    try:
        line = b""
        deadline = time.monotonic() + 60
        while name.encode() not in line:
            # What comes before it listens is not shown: go on until something is.
            await deployment.report(root, Outcome(request_id=name, usage=Usage(1, 1)))
            reading = process.stdout.readline()
            try:
                line = await asyncio.wait_for(reading, timeout=1)
            except TimeoutError:
                assert time.monotonic() < deadline
        assert json.loads(line)["record"]["request_id"] == name
        process.send_signal(2)
        assert await asyncio.wait_for(process.wait(), timeout=20) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_help_and_errors_are_clear(deployment: Deployment) -> None:
    def check() -> None:
        for command in (["send"], ["tail"], ["outcome"], ["explain"], ["catalog", "apply"]):
            assert "Usage:" in run(deployment, *command, "--help")
        text = run(deployment, "send", "--budget", "a b", "--prompt", "x", code=2)
        assert "request: range" in text
        assert "budget must be 1 to 96 letters, digits or _.@:+-, or up to six such parts" in text
        assert "got 'a b'" in text
        text = run(deployment, "outcome", "r", "--budget", "acme", code=2)
        assert "empty_outcome: no usage, cost, reward or error" in text
        text = run(deployment, "outcome", "r", "--budget", "a", "--cost-usd", "-1", code=2)
        assert "--cost-usd: not an amount of dollars: '-1'" in text

    await asyncio.to_thread(check)


def test_a_broker_that_is_not_there_is_said(tmp_path: Path) -> None:
    deployment = Deployment("127.0.0.1:9", "postgresql://nobody@127.0.0.1:9/none", tmp_path)
    for arguments in (("tail", "requests"), ("explain", "r1"), ("catalog", "show")):
        assert "Kafka at 127.0.0.1:9 cannot be used" in run(deployment, *arguments, code=2)
