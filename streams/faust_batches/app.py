"""The Faust app that puts the pieces together."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NoReturn, cast

import faust
from faust.sensors.base import Sensor
from faust.types import TP

from streams.faust_batches.consumer import BatchConsumer
from streams.faust_batches.recovery import BatchTableManager
from streams.faust_batches.schema import BatchSchema, RecordBatch
from streams.faust_batches.table import CheckpointTable
from streams.faust_batches.transport import BatchTransport

logger = logging.getLogger(__name__)

EXIT_CODE = 70
"""``EX_SOFTWARE``: going on would lose something; start the process again."""

Partitions = frozenset[TP]
AgentBody = Callable[[Any], Awaitable[None]]

BASELINE: dict[str, Any] = {
    "processing_guarantee": "at_least_once",
    "store": "memory://",
    "key_serializer": "raw",
    "value_serializer": "raw",
    "consumer_auto_offset_reset": "earliest",
    "table_standby_replicas": 0,
    "topic_disable_leader": True,
    "broker_commit_interval": 1.0,
    "broker_session_timeout": 10.0,
    "broker_heartbeat_interval": 1.0,
    "broker_rebalance_timeout": 60.0,
    "broker_max_poll_records": 2_048,
    "stream_recovery_delay": 0.0,
    "producer_acks": -1,
    "producer_linger": 0.0,
    # Checkpoints are numbers, which do not compress; trying took more than half of the time.
    "producer_compression_type": None,
    "producer_max_batch_size": 262_144,
    "producer_request_timeout": 60.0,
    "web_enabled": False,
    "web_bind": "127.0.0.1",
    "web_tables_enabled": False,
    "web_router_enabled": False,
    "worker_redirect_stdouts": False,
}


class BatchApp(faust.App):
    """A Faust app whose agents get record batches; see the package for the whole contract.

    Parameters
    ----------
    app_id : str
        The consumer group, and the prefix of the changelogs.
    broker : str
        ``kafka://host:port``.
    release_timeout_s : float
        How long an agent may take to finish its batch when partitions are revoked. Keep it,
        and what the hooks need, below ``broker_rebalance_timeout``.
    **settings
        Faust settings, over :data:`BASELINE`.
    """

    def __init__(
        self,
        app_id: str,
        *,
        broker: str,
        release_timeout_s: float = 30.0,
        **settings: Any,
    ) -> None:
        self.batch_topics: set[str] = set()
        self.linger_s: dict[str, float] = {}
        self.stop_requested = asyncio.Event()
        self._releasing = asyncio.Lock()
        self.release_timeout_s = release_timeout_s
        self.commit_positions: Callable[[TP], int | None] = self._finished_position
        self.before_commit: Callable[[Partitions], Awaitable[None]] = _nothing
        self.on_assigned: Callable[[Partitions], Awaitable[Mapping[TP, int] | None]] = _nothing
        self.on_revoked: Callable[[Partitions], Awaitable[None]] = _nothing
        super().__init__(
            app_id, broker=broker, TableManager=BatchTableManager, **{**BASELINE, **settings}
        )
        self.sensors.add(_BatchSensor(self))

    # -- declaring

    def batch_topic(self, name: str, *, linger_s: float = 0.0) -> Any:
        """Return the topic, delivered in record batches. It must exist on the broker.

        After a batch of a partition the next one comes ``linger_s`` later, unless many records
        wait: of a topic that nobody waits for, few batches cost less than many.
        """
        self.batch_topics.add(name)
        if linger_s:
            self.linger_s[name] = linger_s
        return self.topic(name, schema=BatchSchema())

    def batch_agent(self, topic: Any, *, name: str) -> Callable[[AgentBody], Any]:
        """Return the decorator that makes an agent of ``async def body(batches)``.

        One agent a topic, one batch at a time. An exception that leaves the body ends the
        process, see :meth:`exit_on_error`.
        """

        def declare(body: AgentBody) -> Any:
            return self.agent(topic, name=name, concurrency=1)(self.exit_on_error(body))

        return declare

    def exit_on_error(self, body: AgentBody) -> AgentBody:
        """Return the body, ending the process by :meth:`fatal` when an exception leaves it.

        Faust would acknowledge the event and go on with the next one.
        """
        if inspect.isasyncgenfunction(body):
            raise TypeError(f"{body!r} must not yield")

        @functools.wraps(body)
        async def guarded(stream: Any) -> None:
            try:
                await body(stream)
            except (asyncio.CancelledError, GeneratorExit):
                raise
            except BaseException as exc:  # noqa: BLE001
                self.fatal(exc)

        return guarded

    def checkpoint_table(self, name: str, *, partitions: int) -> CheckpointTable:
        """Return a new table; its changelog is ``{app_id}-{name}-changelog``."""
        table = CheckpointTable(self, name=name, partitions=partitions, beacon=self.tables.beacon)
        self.tables.add(table)
        return table

    # -- running

    async def run(self) -> None:
        """Start, and work until :meth:`request_stop`; a crash of any part is fatal."""
        starting = asyncio.ensure_future(self.start())
        stopping = asyncio.ensure_future(self.stop_requested.wait())
        try:
            # Starting ends when the first partitions are restored, which may take long.
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                try:
                    starting.result()
                except Exception as exc:  # noqa: BLE001
                    # The broker went away meanwhile: as a crash later on, not an end for good.
                    self.fatal(exc)
                await self.wait(stopping)
        finally:
            if self.crash_reason is not None:
                self.fatal(self.crash_reason)
            starting.cancel()
            stopping.cancel()
            await self.stop()

    def request_stop(self) -> None:
        """Let :meth:`run` release all partitions and return; for a signal handler."""
        self.stop_requested.set()

    def fatal(self, exc: BaseException) -> NoReturn:
        """Log the exception and end the process at once, with nothing acknowledged.

        The code is the exception's ``exit_code``, if it has one. Such an exception was foreseen
        and explains itself: it needs no traceback.
        """
        foreseen = hasattr(exc, "exit_code")
        logger.critical("Ending the process: %r", exc, exc_info=None if foreseen else exc)
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(getattr(exc, "exit_code", EXIT_CODE))

    def owns(self, topic: str, partition: int) -> bool:
        """Return whether records of this partition may be worked on."""
        return TP(topic, partition) in self.consumer.owned

    async def release_partitions(self) -> None:
        """Finish batches, flush, commit and give up all partitions; a repeat does nothing."""
        if self.crash_reason is not None:
            self.fatal(self.crash_reason)
        async with self._releasing:
            await cast("BatchTableManager", self.tables).recovery.abandon()
            try:
                await self.consumer.wait_idle(self.release_timeout_s)
                await self._give_up(self.consumer.owned)
            except Exception as exc:  # noqa: BLE001
                self.fatal(exc)
            self.consumer.own(frozenset())
            tables = [t for t in self.tables.values() if isinstance(t, CheckpointTable)]
            for table in tables:
                table.close_partitions()
            # What is under way must lie there before the next owner reads.
            for table in tables:
                await table.written()

    async def _give_up(self, owned: Partitions) -> None:
        if not owned:
            return
        # If the group has gone on without us, flushing would overwrite the values of the
        # partitions' new owner.
        if await self.consumer.confirm_membership():
            await self.before_commit(owned)
            await self.consumer.commit()
        else:
            logger.warning("Lost %s partitions unflushed", len(owned))
        await self.on_revoked(owned)

    # -- what Faust calls

    @property  # type: ignore[misc]
    def consumer(self) -> BatchConsumer:  # type: ignore[override]
        """Return the consumer."""
        return cast("BatchConsumer", super().consumer)

    def _finished_position(self, tp: TP) -> int | None:
        return self.consumer.finished_position(tp)

    def _new_transport(self) -> BatchTransport:
        return BatchTransport(self.conf.broker_consumer, self)

    def _new_producer_transport(self) -> BatchTransport:
        return BatchTransport(self.conf.broker_producer, self)

    def _on_rebalance_when_stopped(self) -> None:
        """Nothing: the partitions are being released, which needs the connection."""

    def _create_directories(self) -> None:
        """Nothing: the memory store keeps no files."""


class _BatchSensor(Sensor):
    """Tells the consumer of finished batches, and ends the process when a table write failed."""

    def __init__(self, app: BatchApp, **kwargs: Any) -> None:
        self.app = app
        super().__init__(**kwargs)

    def on_stream_event_out(
        self, tp: TP, offset: int, stream: Any, event: Any, state: Any = None
    ) -> None:
        if isinstance(event.value, RecordBatch) and event.message.acked:
            self.app.consumer.on_batch_done(event)

    def on_send_error(self, producer: Any, exc: BaseException, state: Any) -> None:
        self.app.fatal(exc)


async def _nothing(partitions: Partitions) -> None:
    """Do nothing; the hook that was not set."""
