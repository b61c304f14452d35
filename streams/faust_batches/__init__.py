"""Faust agents on whole record batches, with offsets that are committed for a reason.

How to use it, all of it::

    app = BatchApp("tollway", broker="kafka://127.0.0.1:9092", broker_session_timeout=10.0)
    requests = app.batch_topic("tollway.requests.v1")      # exists already, keyed, P partitions
    table = app.checkpoint_table("pacing", partitions=P)   # changelog tollway-pacing-changelog

    @app.batch_agent(requests, name="tollway.route")
    async def route(batches):
        async for batch in batches:       # RecordBatch: a tuple of aiokafka ConsumerRecord
            ...                           # .topic .partition .first_offset .next_offset

    app.on_assigned = worker.on_assigned          # async (frozenset[TP]) -> {TP: offset} | None
    app.before_commit = worker.before_commit      # async (frozenset[TP]) -> None
    app.on_revoked = worker.on_revoked            # async (frozenset[TP]) -> None
    app.commit_positions = worker.positions       # (TP) -> int | None

    @app.timer(interval=1.0)                      # Faust's own timers and tasks work as usual
    async def flush(): ...

    async def main():
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, app.request_stop)
        await app.run()                           # returns after request_stop
    asyncio.run(main())

The life of a partition, in this order
    1. The tables' partitions are restored from their changelogs.
    2. Reading is set to the committed offsets (the start, where none was committed).
    3. ``on_assigned(partitions)`` with the topic partitions, all that this worker has from now on.
       It may read and write tables. It may return offsets from which to read instead.
    4. Records flow. An agent works on one batch of one partition at a time; what is fetched
       meanwhile waits. Its next batch is all that waits of the partition that has waited longest,
       at most ``broker_max_poll_records``. A partition of which so many wait is not fetched from.
       Every ``broker_commit_interval`` (1 s) ``commit_positions(tp)`` is asked for each partition
       of a batch topic, and exactly that offset is committed if it is higher than the last; None
       commits nothing. Unset, it is the end of the last batch that the agent finished.
    5. On every rebalance (all partitions, also those that come back) and on stop: fetching stops,
       queues are emptied, the agents finish the batches that they have begun (at most
       ``release_timeout_s``), then ``before_commit(partitions)``, a commit,
       ``on_revoked(partitions)``; table values are dropped. If the group has already gone on
       without this worker (it was stopped for longer than the session timeout), ``before_commit``
       and the commit are left out, because its values would overwrite the new owner's.
    A rebalance during 1-3 cancels them, ``on_assigned`` included; ``on_revoked`` is only called
    for partitions whose ``on_assigned`` returned. An exception in a hook ends the process.

Errors
    ``app.fatal(exc)`` logs and ends the process at once with code :data:`EXIT_CODE` (70): nothing
    is acknowledged. A crash of any service, timer or task of the app ends in it too. An exception
    that leaves the body of a ``batch_agent`` does that;
    ``app.exit_on_error(body)`` does it for any other agent. Errors are subclasses of
    :class:`TransportError`.

Tables
    ``await table.put(partition, {key: value or None})`` from anywhere, ``table.values(partition)``;
    see :class:`CheckpointTable`. Outside the hooks (in a timer) be ready for
    :class:`PartitionNotOwnedError`: the partition may be gone when the write's turn comes; that
    is no reason to stop. Topics and changelogs must have the same partition count, and an app
    needs at least one table: Faust only keeps equal partitions of several topics together when
    there is a changelog. Plain ``app.Table`` in memory is restored too.

Topics of ``app.topic`` (not ``batch_topic``) are delivered record by record, with Faust's acks.
The package relies on private parts of Faust and aiokafka and refuses to be imported with other
versions than :data:`PINNED`.
"""

from streams.faust_batches.versions import PINNED  # isort: skip  # before Faust is touched
from streams.faust_batches.app import BASELINE, EXIT_CODE, BatchApp
from streams.faust_batches.consumer import BatchConsumer
from streams.faust_batches.errors import (
    BatchStuckError,
    ChangelogMissingError,
    ChangelogOverlapError,
    PartitionCountError,
    PartitionNotOwnedError,
    RestoreStalledError,
    TransportError,
    UnsupportedVersionError,
    ValueTooLargeError,
)
from streams.faust_batches.schema import BatchSchema, RecordBatch
from streams.faust_batches.table import VALUE_BYTES_MAX, CheckpointTable
from streams.faust_batches.transport import BatchTransport

__all__ = [
    "BASELINE",
    "EXIT_CODE",
    "PINNED",
    "VALUE_BYTES_MAX",
    "BatchApp",
    "BatchConsumer",
    "BatchSchema",
    "BatchStuckError",
    "BatchTransport",
    "ChangelogMissingError",
    "ChangelogOverlapError",
    "CheckpointTable",
    "PartitionCountError",
    "PartitionNotOwnedError",
    "RecordBatch",
    "RestoreStalledError",
    "TransportError",
    "UnsupportedVersionError",
    "ValueTooLargeError",
]
