"""What the commands share, and what they say of a command line that lacks something."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from typer.testing import CliRunner

from streams.__main__ import build_cli
from streams.commands.common import MESSAGES_MAX, REPEAT_S, Sparing


def words(home: Path, *arguments: str, **settings: str) -> str:
    """Return what a command says that ends with code 2, before it needs a server."""
    environment = {
        "TOLLWAY_HOME": str(home),
        "TOLLWAY_KAFKA": "127.0.0.1:9",
        "TOLLWAY_DATABASE_URL": "postgresql://nobody@127.0.0.1:9/none",
        **settings,
    }
    done = CliRunner().invoke(build_cli(arguments[0]), arguments, env=environment)
    assert done.exit_code == 2, (done.exit_code, done.output, done.exception)
    return done.stderr


def said(sparing: Sparing, name: str, message: str, at: float, *values: object) -> bool:
    record = logging.LogRecord(name, logging.ERROR, "", 0, message, values, None)
    record.created = at
    return sparing.filter(record)


def test_a_library_that_repeats_itself_is_heard_once_in_a_while() -> None:
    sparing = Sparing(["aiokafka"])
    assert said(sparing, "aiokafka.conn", "no way to %s", 100.0, "a:1")
    assert not said(sparing, "aiokafka.conn", "no way to %s", 101.0, "a:2")
    assert said(sparing, "aiokafka.conn", "another", 101.0)
    assert said(sparing, "aiokafka.conn", "no way to %s", 100.0 + REPEAT_S, "a:1")
    assert all(said(sparing, "streams.worker", "no way to %s", 100.0) for _ in range(3))


def test_what_was_said_is_not_remembered_without_a_bound() -> None:
    sparing = Sparing(["mode"])
    assert all(said(sparing, "mode", f"message {n}", 1.0 + REPEAT_S) for n in range(MESSAGES_MAX))
    assert not said(sparing, "mode", "message 0", 1.0 + REPEAT_S)
    assert said(sparing, "mode", "one more", 1.0 + REPEAT_S)
    assert said(sparing, "mode", "message 0", 1.0 + REPEAT_S)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        pytest.param(["--prompt", "x"], "no --budget is given; give the path", id="no-budget"),
        pytest.param(["--budget", "acme"], "give --prompt or --features", id="nothing"),
        pytest.param(
            ["--budget", "acme", "--features", "[1,2,3]"],
            "--features needs --input-tokens",
            id="no-tokens",
        ),
        pytest.param(
            ["--budget", "acme", "--features", "[1]", "--prompt", "x", "--input-tokens", "1"],
            "--prompt and --features are both given",
            id="both",
        ),
    ],
)
def test_send_names_the_options_that_a_request_lacks(
    tmp_path: Path, options: list[str], wanted: str
) -> None:
    told = words(tmp_path, "send", *options)
    assert wanted in told
    assert "`" not in told


def test_a_line_of_a_file_lacks_fields_not_options(tmp_path: Path) -> None:
    file = tmp_path / "requests.jsonl"
    file.write_text('{"features": [1, 2, 3]}\n')
    told = words(tmp_path, "send", "--budget", "acme", "--file", str(file))
    assert "requests.jsonl:1: missing_field: Object missing required field `input_tokens`" in told


def test_the_help_of_send_says_which_code_a_rejection_has() -> None:
    text = " ".join(CliRunner().invoke(build_cli("send"), ["send", "--help"]).stdout.split())
    assert (
        'exit code is 0 if each got a decision, also one that names no model ("rejected")' in text
    )
    assert "1 if one was refused (a dead letter)" in text


def test_a_misspelt_audit_is_told_all_that_there_are(tmp_path: Path) -> None:
    assert "no audit 'verfy'; there are spend, " in words(tmp_path, "audit", "verfy")
    assert words(tmp_path, "audit", "verfy").endswith(", cursors, verify\n")
    assert "audit savings needs --arm" in words(tmp_path, "audit", "savings")


def test_tail_takes_a_topic_by_either_name(tmp_path: Path) -> None:
    for name in ("dead-letters", "tollway.dead-letters.v1"):
        assert "Kafka at 127.0.0.1:9 cannot be used" in words(tmp_path, "tail", name)
    told = " ".join(words(tmp_path, "tail", "dead-letter", COLUMNS="500").split())
    assert "'dead-letter'; there are requests, " in told
    assert "full names such as tollway.dead-letters.v1" in told
