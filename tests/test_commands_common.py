"""What the commands share."""

from __future__ import annotations

import logging

from streams.commands.common import MESSAGES_MAX, REPEAT_S, Sparing


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
