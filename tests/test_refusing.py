"""Dead letters: written once, and only after the decisions that they follow from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from policy.settle import Verdict
from streams import refusing, topics
from streams.metrics import Metrics
from streams.publisher import FencedError, Outbox
from streams.records import DeadLetter, decode
from streams.refusing import DeadLetters, mark_of

VERDICT = Verdict("refused", "unknown_request", "no decision came for it")


class Broker:
    """What two outboxes did, in order."""

    def __init__(self, *, is_shut: bool = False) -> None:
        self.done: list[str] = []
        self.letters: list[DeadLetter] = []
        self._is_shut = is_shut

    def outbox(self, topic: str) -> Outbox:
        broker = self

        class Recording(Outbox):
            async def send(self, key: bytes | None, values: Sequence[bytes], **more: Any) -> None:
                broker.done.append(f"send {self.topic}")
                broker.letters += [decode(DeadLetter, value) for value in values]

            async def flush(self) -> None:
                if broker._is_shut:
                    raise FencedError(self.topic, self.partition)
                broker.done.append(f"flush {self.topic}")

        return Recording(None, topic, 0)  # type: ignore[arg-type]

    def dead_letters(self, known: set[tuple[str, int]] | None = None) -> DeadLetters:
        return DeadLetters(
            partition=0, outbox=self.outbox("letters"), decisions=self.outbox("decisions"),
            metrics=Metrics(), known=known or set(),
        )  # fmt: skip


async def refuse(letters: DeadLetters, *offsets: int) -> None:
    for offset in offsets:
        await letters.refuse(topics.OUTCOMES, offset, mark_of(b"x"), VERDICT, at_ms=1)


async def test_a_dead_letter_is_sent_after_the_decisions_before_it() -> None:
    broker = Broker()
    letters = broker.dead_letters({(topics.OUTCOMES, 2)})
    await refuse(letters, 1, 2, 3)
    assert broker.done == []
    await letters.flush()
    assert broker.done == ["flush decisions", "send letters", "flush letters"]
    assert [letter.offset for letter in broker.letters] == [1, 3]
    await letters.flush()
    assert len(broker.letters) == 2


async def test_an_owner_that_is_shut_out_writes_none() -> None:
    broker = Broker(is_shut=True)
    letters = broker.dead_letters()
    await refuse(letters, 1)
    with pytest.raises(FencedError):
        await letters.flush()
    assert broker.done == broker.letters == []


async def test_a_dead_letter_that_comes_while_decisions_are_waited_for_waits_for_those_after_it():
    broker = Broker()
    letters = broker.dead_letters()

    class Slow(Outbox):
        async def flush(self) -> None:
            await refuse(letters, 2)

    letters.decisions = Slow(None, "decisions", 0)  # type: ignore[arg-type]
    await refuse(letters, 1)
    await letters.flush()
    assert [letter.offset for letter in broker.letters] == [1]


async def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusing, "HELD_MAX", 3)
    broker = Broker()
    await refuse(broker.dead_letters(), 1, 2, 3, 4)
    assert broker.done == ["flush decisions", "send letters"]
    assert [letter.offset for letter in broker.letters] == [1, 2, 3]
