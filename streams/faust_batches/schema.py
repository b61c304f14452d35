"""Record batches, and the schema that hands them to an agent as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import faust

if TYPE_CHECKING:
    from faust.types import EventT, Message


class RecordBatch(tuple):  # type: ignore[type-arg]
    """The records of one partition that one fetch returned, in offset order; never empty.

    The elements are aiokafka's ``ConsumerRecord`` (``offset``, ``key``, ``value``, ``headers``,
    ``timestamp`` in milliseconds). Offsets may have gaps, where the broker compacted records
    away or keeps transaction markers.

    Attributes
    ----------
    topic : str
    partition : int
    first_offset : int
        Offset of the first record.
    next_offset : int
        One more than the offset of the last record: the position when the batch is done.
    """

    topic: str
    partition: int
    first_offset: int
    next_offset: int

    def __new__(cls, records: Sequence[Any]) -> RecordBatch:
        """Return the batch of these records, all of one partition."""
        batch = super().__new__(cls, records)
        first, last = records[0], records[-1]
        batch.topic, batch.partition = first.topic, first.partition
        batch.first_offset, batch.next_offset = first.offset, last.offset + 1
        return batch


class BatchSchema(faust.Schema[Any, Any]):
    """Hands every value over undecoded, because decoding belongs to the agent."""

    def compile(self, app: Any, **_options: Any) -> Any:
        """Return the coroutine that makes an event of a message."""

        async def decode(message: Message, *, propagate: bool = False) -> EventT[Any]:
            event: EventT[Any] = app.create_event(None, message.value, None, message)
            return event

        return decode
