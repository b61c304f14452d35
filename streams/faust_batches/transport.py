"""The transport and the producer, durable where Faust's own is not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from faust.transport.drivers.aiokafka import Producer, Transport
from faust.transport.producer import ProducerBuffer
from mode import Service

from streams.faust_batches.consumer import BatchConsumer


class BatchProducerBuffer(ProducerBuffer):
    """Flushes until everything was handed to the producer, however slow the broker is.

    Faust's own gives up after 100 ms without progress and does not count the message in hand,
    so that an offset can be committed before the table value that it stands for.
    """

    async def flush(self) -> None:
        """Wait until the producer has taken over everything that was put in before."""
        await self.wait(self.pending.join())

    async def on_stop(self) -> None:
        """Hand over what is left; the task that does it otherwise has ended."""
        while not self.pending.empty():
            await self._send_pending(self.pending.get_nowait())
            self.pending.task_done()

    @Service.task
    async def _handle_pending(self) -> None:
        while not self.should_stop:
            message = await self.pending.get()
            await self._send_pending(message)
            self.pending.task_done()
            self.message_sent.set()


class BatchProducer(Producer):
    """An idempotent producer that waits for all in-sync replicas."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.buffer = BatchProducerBuffer(loop=self.loop, beacon=self.beacon)
        self.buffer.app = self.app

    def _settings_extra(self) -> Mapping[str, Any]:
        return {"acks": "all", "enable_idempotence": True}


class BatchTransport(Transport):
    """aiokafka, delivering record batches."""

    Consumer = BatchConsumer
    Producer = BatchProducer
