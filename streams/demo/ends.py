"""How far the topics reach."""

from __future__ import annotations

from collections.abc import Sequence

from aiokafka import AIOKafkaConsumer, TopicPartition


class TopicEnds:
    """Asks the broker where topics end; connected between :meth:`start` and :meth:`stop`."""

    def __init__(self, kafka: str, names: Sequence[str]) -> None:
        self._names = names
        self._consumer = AIOKafkaConsumer(
            bootstrap_servers=kafka, group_id=None, enable_auto_commit=False
        )
        self._places: list[TopicPartition] = []

    async def start(self) -> None:
        """Connect and learn the partitions."""
        await self._consumer.start()
        # The only way to ask without a group.
        await self._consumer._client.force_metadata_update()
        cluster = self._consumer._client.cluster
        self._places = [
            TopicPartition(name, number)
            for name in self._names
            for number in cluster.partitions_for_topic(name) or ()
        ]

    async def stop(self) -> None:
        """Disconnect."""
        await self._consumer.stop()

    async def read(self) -> dict[tuple[str, int], int]:
        """Return the offset after the last record of each partition."""
        ends = await self._consumer.end_offsets(self._places)
        return {(place.topic, place.partition): end for place, end in ends.items()}
