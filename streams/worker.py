"""The worker: a Faust app that owns partitions and lets their records through.

One request's way: topic ``requests`` → :func:`route` → ``Partition.on_requests`` →
``policy.decide`` → topic ``decisions``. One outcome's way: topic ``outcomes`` → :func:`settle` →
``Partition.on_outcomes`` → ``policy.settle``. A timer writes the dirty pages to the tables.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from typing import Any

from aiokafka.errors import IllegalStateError, KafkaError, ProducerClosed
from faust.types import TP
from prometheus_client import start_http_server

from policy.catalog import Catalog
from policy.state import Limits
from streams import topics
from streams.config import Config, ConfigError
from streams.encoders import Encoders
from streams.failpoints import pass_point
from streams.faust_batches import EXIT_CODE, BatchApp, PartitionNotOwnedError
from streams.fencing import Fences
from streams.following import Follower
from streams.intake import Intake
from streams.log import LogReader
from streams.metrics import Metrics
from streams.opening import Opener
from streams.partition import Partition
from streams.patience import until_there
from streams.publisher import FencedError, make_producer, to_the_wire
from streams.topic_facts import TopicRefusedError, check_controller, check_ids, check_topics

logger = logging.getLogger(__name__)

OUTCOMES_LINGER_S = 0.25
"""Only requests without money wait for a settlement: fewer batches leave more time to decide."""
TOPICS_CHECKED_S = 5.0
"""How often a worker looks whether its topics are still the same."""
STOP_S = 45.0
"""How long a worker that was told to stop may take: longer than its agents have for their batches
(``release_timeout_s``), and than any drain takes while the broker answers."""


class NotDrainedError(Exception):
    """A worker could not drain. Nothing is lost: who takes its partitions over goes on from it."""

    exit_code = EXIT_CODE

    def __init__(self) -> None:
        super().__init__(
            f"told to stop {STOP_S:.0f} s ago and not drained yet; is Kafka away? "
            "What was not written will be done again"
        )


class Worker:
    """One process; ``run`` returns after SIGTERM or SIGINT, drained."""

    def __init__(self, config: Config, kafka: str) -> None:
        self._config = config
        self.metrics = Metrics()
        self.partitions: dict[int, Partition] = {}
        self.app = BatchApp(
            config.app_id,
            broker=f"kafka://{kafka}",
            broker_session_timeout=config.session_timeout_s,
            broker_heartbeat_interval=min(1.0, config.session_timeout_s / 4),
            broker_commit_interval=config.checkpoint_ms / 1_000,
        )
        self.producer = make_producer(kafka)
        self.fences = Fences(kafka, app_id=config.app_id)
        self.reader = LogReader(kafka)
        self.follower = Follower(kafka)
        self._encoders = Encoders(config.encoders)
        self._background: list[asyncio.Task[None]] = []
        self.tables = {
            name: self.app.checkpoint_table(name, partitions=config.partitions)
            for name in topics.TABLES
        }
        self._topic_ids: list[bytes] = []
        self._declare()

    def _declare(self) -> None:
        app = self.app

        @app.batch_agent(app.batch_topic(topics.REQUESTS), name="tollway.route")
        async def route(batches: Any) -> None:
            """Decide requests: which model, at what reserved price, and why."""
            async for batch in batches:
                await self.partitions[batch.partition].on_requests(batch)
                await to_the_wire()

        outcomes = app.batch_topic(topics.OUTCOMES, linger_s=OUTCOMES_LINGER_S)

        @app.batch_agent(outcomes, name="tollway.settle")
        async def settle(batches: Any) -> None:
            """Settle reservations and learn from outcomes."""
            async for batch in batches:
                await self.partitions[batch.partition].on_outcomes(batch)

        @app.timer(interval=self._config.checkpoint_ms / 1_000, name="tollway.checkpoint")  # type: ignore[untyped-decorator]
        async def checkpoint() -> None:
            """Write what has changed to the tables, and tell others what was learned.

            One partition after the other, over the whole interval: at once they would keep
            requests waiting that come in that moment.
            """
            owned = list(self.partitions)
            pause_s = self._config.checkpoint_ms / 1_000 / max(len(owned), 1)
            await asyncio.gather(
                *(self._checkpoint(n, after_s=turn * pause_s) for turn, n in enumerate(owned))
            )

        @app.timer(interval=TOPICS_CHECKED_S, name="tollway.topics")  # type: ignore[untyped-decorator]
        async def check() -> None:
            """End if a topic was created anew, or got more partitions, while we worked."""
            if self.partitions:
                try:
                    await self._check_topics()
                except KafkaError as exc:
                    logger.warning("the topics could not be looked at: %s", exc)

        app.on_assigned = self._on_assigned
        app.before_commit = self._before_commit
        app.on_revoked = self._on_revoked
        app.commit_positions = self._commit_position

    async def run(self) -> None:
        """Work until told to stop; a crash of any part ends the process with code 70."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        self._serve_metrics()
        try:
            if await self._connect():
                await self.app.run()
        finally:
            for task in self._background:
                task.cancel()
            await self.fences.close()
            await self.follower.stop()
            await self.reader.stop()
            await self.producer.stop()

    def _stop(self) -> None:
        """Drain and end; at once after :data:`STOP_S`, as when the broker is away and stays so."""
        self.app.request_stop()
        asyncio.get_running_loop().call_later(STOP_S, self.app.fatal, NotDrainedError())

    def _serve_metrics(self) -> None:
        port = self._config.metrics_port
        if port:
            try:
                start_http_server(port, "127.0.0.1", registry=self.metrics.registry)
            except OSError as exc:
                raise ConfigError(
                    f"TOLLWAY_METRICS_PORT={port}: {exc.strerror}; every worker of a machine "
                    "needs a port of its own, or 0 for none"
                ) from exc

    async def _connect(self) -> bool:
        """Wait for Kafka and read what every worker must know; False if told to stop before."""
        try:
            # Before anything is assigned: of a topic that has grown there is no changelog.
            calls = self.producer.start, self.reader.start, self._check_controller
            for call in (*calls, self._check_topics):
                if not await until_there(call, what="Kafka", stop=self.app.stop_requested):
                    return False
            await self.follower.start()
        except (TopicRefusedError, KafkaError) as exc:
            self.app.fatal(exc)
        self._background = [
            asyncio.create_task(self._or_fatal(work))
            for work in (self.follower.run(), self.fences.keep())
        ]
        return True

    async def _checkpoint(self, number: int, *, after_s: float) -> None:
        await asyncio.sleep(after_s)
        # Looked up now: if a rebalance took the partition away meanwhile and brought it back, what
        # it was before may hold pages that another owner has gone on from.
        partition = self.partitions.get(number)
        if partition is None or not self.app.owns(topics.REQUESTS, number):
            return
        # A rebalance may take the partition away in the middle: its next owner folds.
        with suppress(PartitionNotOwnedError):
            try:
                await partition.tick()
                await partition.checkpoint()
            except (FencedError, ProducerClosed) as exc:
                if self.partitions.get(number) is partition:
                    raise
                logger.info("partition %s was let go: %r", number, exc)

    async def _or_fatal(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except asyncio.CancelledError:
            raise
        except Exception as exc:  # noqa: BLE001
            self.app.fatal(exc)

    # -- the hooks of the app

    async def _on_assigned(self, assigned: frozenset[TP]) -> Mapping[TP, int]:
        self._let_go()
        if not await self.app.consumer.confirm_membership():
            # Who is the owner now must not be shut out by us.
            raise IllegalStateError("no member of the group any more")
        opener = Opener(
            reader=self.reader,
            follower=self.follower,
            make_intake=self._intake,
            tables=self.tables,
            partitions=self._config.partitions,
            producer=self.producer,
            limits=Limits(
                reservation_ttl_ms=self._config.reservation_ttl_ms, defer_ms=self._config.defer_ms
            ),
            metrics=self.metrics,
            features=self._features,
            topic_ids=await self._check_topics(),
            late_values=self._late_values,
        )
        starts = {}
        numbers = sorted({tp.partition for tp in assigned})
        # Before anything is read: what a former owner has on its way lies there now, or never.
        producers = await self.fences.open(numbers)
        try:
            for number in numbers:
                partition = await opener.open(number, producers[number])
                self.partitions[number] = partition
                starts[TP(topics.OUTCOMES, number)] = partition.state.gate.position.outcomes
        except BaseException:
            self._let_go()
            raise
        logger.info("assigned partitions %s", sorted(self.partitions))
        return starts

    async def _check_controller(self) -> None:
        await check_controller(self.reader.client)

    async def _check_topics(self) -> list[bytes]:
        """Return the ids of the logs; raise if a topic is not what it was."""
        found = await check_topics(self.reader.client, partitions=self._config.partitions)
        check_ids(self._topic_ids, found)
        self._topic_ids = found
        return found

    def _late_values(self, number: int) -> dict[bytes, bytes]:
        return {
            key: value
            for table in self.tables.values()
            for key, value in table.late_values(number).items()
        }

    async def _before_commit(self, owned: frozenset[TP]) -> None:
        for number in sorted({tp.partition for tp in owned}):
            if number in self.partitions:
                pass_point("worker.before_release")
                await self.partitions[number].checkpoint(everything=True)

    async def _on_revoked(self, revoked: frozenset[TP]) -> None:
        self._let_go()

    def _let_go(self) -> None:
        self.partitions.clear()
        self.fences.give_up()

    def _commit_position(self, tp: TP) -> int | None:
        partition = self.partitions.get(tp.partition)
        return None if partition is None else partition.commit_position(tp.topic)

    # -- features and the catalog

    def _intake(self, catalog: Catalog) -> Intake:
        return self._encoders.intake(catalog)

    def _features(self) -> str:
        return self._encoders.features(self.follower.catalog)
