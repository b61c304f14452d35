"""Owners of a partition take turns at one producer id: an older owner's batches are refused.

All owners of a partition share a transactional id. ``InitProducerId`` raises the epoch of its
producer id. An empty transaction over the topics that the owner writes brings the new epoch into
those logs, by its marker, which takes one offset of each; from then on the broker refuses every
batch of an older epoch, also one that was on its way for long. A second ``InitProducerId`` waits
for the markers and gives the epoch to write with. The batches themselves are plain idempotent
ones, in no transaction: they cost nothing more. Read where the logs end only after that.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Any, TypeVar

from aiokafka import AIOKafkaProducer
from aiokafka.client import CoordinationType
from aiokafka.errors import KafkaError, ProducerFenced, for_code
from aiokafka.producer.transaction_manager import PidAndEpoch
from aiokafka.protocol.transaction import (
    AddPartitionsToTxnRequest,
    EndTxnRequest,
    InitProducerIdRequest,
)

from streams import topics
from streams.publisher import FencedError, make_producer

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

OWNED = (topics.DECISIONS, topics.DEAD_LETTERS)
"""The topics that only the owner of a partition writes."""
FENCE_S = 60.0
"""How long the transaction coordinator may take; it has to load its log after it came up."""
KEEP_S = 6 * 3_600.0
"""How often the coordinator is asked, lest it forgets an id: it does after a week by default."""
CLOSE_S = 5.0
TRANSACTION_MS = 60_000
"""After this time an empty transaction whose maker was killed is ended by the broker."""
_RETRY_S = 0.02

_NOT_YET = frozenset({-1, 3, 6, 7, 14, 15, 16, 51})
"""Unknown topic, not leader, timed out, coordinator loading, none, elsewhere, or still busy.

-1 is what Kafka 4.2 says if several ask at once for an id that it has not seen before.
"""
_OVERTAKEN = frozenset({47, 49, 90})
"""Another has raised the epoch, or has got another producer id, meanwhile."""


class _NotYetError(KafkaError):  # type: ignore[misc]
    """The coordinator cannot do it now, and did not."""

    retriable = True


class FencedProducer:
    """The producer of one partition's owner; made by :meth:`open`."""

    def __init__(self, kafka: str, *, app_id: str, partition: int) -> None:
        self.partition = partition
        self.producer: AIOKafkaProducer = make_producer(kafka)
        self._kafka = kafka
        self._id = f"{app_id}-partition-{partition}"
        self._own = PidAndEpoch(-1, -1)

    @classmethod
    async def open(cls, kafka: str, *, app_id: str, partition: int) -> FencedProducer:
        """Return a producer that has shut out all former owners of the partition.

        Raises
        ------
        FencedError
            If another owner did the same meanwhile.
        TimeoutError
            If the coordinator was not ready within :data:`FENCE_S`.
        """
        made = cls(kafka, app_id=app_id, partition=partition)
        try:
            async with asyncio.timeout(FENCE_S):
                await made._retried(made._start)
                made._own = await made._retried(made._fence)
            made.producer._txn_manager._pid_and_epoch = made._own
        except BaseException:
            await made.close()
            raise
        return made

    async def keep(self) -> None:
        """Let the coordinator remember the id; what it has given us goes on to be valid.

        The epoch that it gives is not used: the logs know ours, and the next owner gets a higher
        one.

        Raises
        ------
        FencedError
            If the coordinator had forgotten it: the next owner would not shut us out.
        """
        async with asyncio.timeout(FENCE_S):
            found: PidAndEpoch = await self._retried(self._init)
        if found.pid != self._own.pid:
            raise FencedError(topics.DECISIONS, self.partition)

    async def close(self) -> None:
        """Send what is left, if that is possible soon, and disconnect."""
        producer = self.producer
        try:
            async with asyncio.timeout(CLOSE_S):
                await producer.stop()
        except TimeoutError:
            logger.warning("partition %s: closed with batches unsent", self.partition)
            # Requests that are under way end with their connection.
            await producer.client.close()
            sending = producer._sender.sender_task
            # Cancelled once it waits for its requests, cancelled again it ends them.
            while sending is not None and not sending.done():
                sending.cancel()
                await asyncio.wait([sending], timeout=0.1)
            await producer.client.close()

    async def _start(self) -> None:
        try:
            await self.producer.start()
        except KafkaError:
            await self.close()
            self.producer = make_producer(self._kafka)
            raise

    async def _retried(self, ask: Callable[[], Awaitable[_T]]) -> _T:
        told = False
        while True:
            try:
                return await ask()
            except ProducerFenced:
                raise FencedError(topics.DECISIONS, self.partition) from None
            except KafkaError as exc:
                # Also one after which nobody knows what the coordinator did: a fence that is
                # built from its beginning is whole in any case.
                if not exc.retriable:
                    raise
                if not told:
                    logger.info("%s: not yet: %r", self._id, exc)
                    told = True
                await asyncio.sleep(_RETRY_S)

    async def _fence(self) -> PidAndEpoch:
        first = await self._init()
        own = {
            "transactional_id": self._id,
            "producer_id": first.pid,
            "producer_epoch": first.epoch,
        }
        owned = [(topic, [self.partition]) for topic in OWNED]
        added = await self._ask(AddPartitionsToTxnRequest(**own, topics=owned))
        for _, errors in added.errors:
            for _, code in errors:
                _check(code)
        _check((await self._ask(EndTxnRequest(**own, transaction_result=True))).error_code)
        while True:
            try:
                second = await self._init()
            except _NotYetError:
                await asyncio.sleep(_RETRY_S)  # the markers are being written
            else:
                break
        # With a gap another owner came between: its marker lies behind ours, and a batch of ours
        # would shut out who may be the partition's owner now.
        if second != (first.pid, first.epoch + 1):
            raise ProducerFenced
        return second

    async def _init(self) -> PidAndEpoch:
        answer = await self._ask(
            InitProducerIdRequest(transactional_id=self._id, transaction_timeout_ms=TRANSACTION_MS)
        )
        _check(answer.error_code)
        return PidAndEpoch(answer.producer_id, answer.producer_epoch)

    async def _ask(self, request: Any) -> Any:
        client = self.producer.client
        node = await client.coordinator_lookup(CoordinationType.TRANSACTION, self._id)
        return await client.send(node, request)


def _check(code: int) -> None:
    if code in _OVERTAKEN:
        raise ProducerFenced
    if code in _NOT_YET:
        raise _NotYetError(for_code(code).__name__)
    if code:
        raise for_code(code)


class Fences:
    """The producers of all partitions that a worker owns."""

    def __init__(self, kafka: str, *, app_id: str) -> None:
        self._kafka = kafka
        self._app_id = app_id
        self._open: dict[int, FencedProducer] = {}
        self._closing: set[asyncio.Task[None]] = set()

    async def open(self, numbers: Iterable[int]) -> dict[int, AIOKafkaProducer]:
        """Return the producers of these partitions, made at the same time; or none of them."""
        opening = [asyncio.create_task(self._open_one(number)) for number in numbers]
        try:
            await asyncio.gather(*opening)
        except BaseException:
            for task in opening:
                task.cancel()
            await asyncio.gather(*opening, return_exceptions=True)
            self.give_up()
            raise
        return {number: made.producer for number, made in self._open.items()}

    async def _open_one(self, number: int) -> None:
        self._open[number] = await FencedProducer.open(
            self._kafka, app_id=self._app_id, partition=number
        )

    def give_up(self) -> None:
        """Close all producers, without waiting for it."""
        for made in self._open.values():
            task = asyncio.create_task(made.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
        self._open.clear()

    async def close(self) -> None:
        """Close all producers."""
        self.give_up()
        await asyncio.gather(*self._closing, return_exceptions=True)

    async def keep(self) -> None:
        """Let the coordinator remember the ids, until cancelled."""
        while True:
            await asyncio.sleep(KEEP_S)
            for number in list(self._open):
                made = self._open.get(number)
                if made is None:
                    continue  # given up meanwhile
                with suppress(KafkaError, TimeoutError):
                    await made.keep()
