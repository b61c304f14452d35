"""A small worker for the transport's tests, run as a process of its own.

It counts the records of one topic into a checkpoint table and writes what happens, one JSON
object a line, to ``--log``. A partition's state is ``{"next": offset, "count": n, "sum": s}``;
records before ``next`` are skipped, so that every record has its effect once.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from faust.types import TP

from streams.faust_batches import (
    BatchApp,
    BatchConsumer,
    BatchTransport,
    PartitionNotOwnedError,
    RecordBatch,
)

KEY = b"state"


class Journal:
    """Appends what happened to a file, each line in one write."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def write(self, event: str, **fields: Any) -> None:
        """Write one line."""
        line = {"event": event, "pid": os.getpid(), "at": time.time(), **fields}
        os.write(self._file, json.dumps(line).encode() + b"\n")


class SlowOffsetConsumer(BatchConsumer):
    """Learns the committed offsets late, as from a busy broker."""

    delay_s = 0.0

    async def seek_to_committed(self) -> Mapping[TP, int]:
        await asyncio.sleep(self.delay_s)
        return await super().seek_to_committed()


class SlowOffsetTransport(BatchTransport):
    Consumer = SlowOffsetConsumer


class CountingApp(BatchApp):
    """The app of the module's docstring."""

    def __init__(self, args: argparse.Namespace, journal: Journal) -> None:
        super().__init__(
            args.app,
            broker=f"kafka://{args.broker}",
            broker_session_timeout=args.session,
            broker_heartbeat_interval=0.3,
            broker_commit_interval=args.commit_interval,
            broker_max_poll_records=args.batch,
        )
        self.args, self.journal = args, journal
        self.states: dict[int, dict[str, int]] = {}
        self.flushed: dict[int, int] = {}
        self.counts = self.checkpoint_table("counts", partitions=args.partitions)
        if args.lullaby:
            self._write_to_counts, self.counts._append = self.counts._append, self.sleep_and_write
        self.before_commit = self.flush
        self.on_assigned = self.assigned
        self.on_revoked = self.revoked
        if not args.own_acks:
            self.commit_positions = lambda tp: self.flushed.get(tp.partition)

    def _new_transport(self) -> BatchTransport:
        SlowOffsetConsumer.delay_s = self.args.slow_offsets
        return SlowOffsetTransport(self.conf.broker_consumer, self)

    async def assigned(self, partitions: frozenset[TP]) -> None:
        for tp in sorted(partitions):
            stored = self.counts.values(tp.partition).get(KEY)
            state = json.loads(stored) if stored else {"next": 0, "count": 0, "sum": 0}
            self.states[tp.partition] = state
            self.journal.write("assigned", partition=tp.partition, **state)

    async def revoked(self, partitions: frozenset[TP]) -> None:
        for tp in partitions:
            self.journal.write("revoked", partition=tp.partition, **self.states.pop(tp.partition))
            self.flushed.pop(tp.partition, None)

    async def flush(self, partitions: frozenset[TP]) -> None:
        for partition, state in list(self.states.items()):
            if state["next"] > self.flushed.get(partition, 0):
                snapshot = dict(state)
                await self.counts.put(partition, {KEY: json.dumps(snapshot).encode()})
                self.flushed[partition] = snapshot["next"]

    async def sleep_and_write(self, *args: Any) -> Any:
        """Fall asleep just before a write that was allowed, once there is a lullaby."""
        if Path(self.args.lullaby).exists():
            Path(self.args.lullaby).unlink()
            os.kill(os.getpid(), signal.SIGSTOP)
        return await self._write_to_counts(*args)

    async def count(self, batch: RecordBatch) -> None:
        args, state = self.args, self.states[batch.partition]
        self.journal.write(
            "batch",
            partition=batch.partition,
            first=batch.first_offset,
            next=batch.next_offset,
            records=len(batch),
            headers=len(batch[0].headers),
        )
        await asyncio.sleep(args.work)
        for record in batch:
            poison = record.value == b"poison"
            if poison and not Path(args.antidote).exists():
                raise ValueError("poison")
            if record.offset >= state["next"]:
                state["next"] = record.offset + 1
                state["count"] += 1
                state["sum"] += 0 if poison else int(record.value)
        self.journal.write(
            "counted",
            partition=batch.partition,
            next=batch.next_offset,
            size=len(batch),
            waiting=self.consumer.waiting(TP(batch.topic, batch.partition)),
        )


def build(args: argparse.Namespace) -> CountingApp:
    """Return the app with its agent and its timer."""
    app = CountingApp(args, Journal(args.log))

    @app.batch_agent(app.batch_topic(args.topic), name="tests.count")
    async def count(batches: Any) -> None:
        async for batch in batches:
            await app.count(batch)

    @app.timer(interval=args.flush_interval)
    async def flush() -> None:
        # A rebalance may take a partition away in the middle: its next owner counts again.
        with suppress(PartitionNotOwnedError):
            await app.flush(frozenset())

    return app


async def main(args: argparse.Namespace) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    app = build(args)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, app.request_stop)
    await app.run()
    app.journal.write("stopped")


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--broker", required=True)
    parser.add_argument("--app", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--antidote", default="")
    parser.add_argument("--partitions", type=int, default=4)
    parser.add_argument("--batch", type=int, default=200)
    parser.add_argument("--session", type=float, default=3.0)
    parser.add_argument("--work", type=float, default=0.0)
    parser.add_argument("--slow-offsets", type=float, default=0.0)
    parser.add_argument("--commit-interval", type=float, default=0.3)
    parser.add_argument("--flush-interval", type=float, default=0.2)
    parser.add_argument("--lullaby", default="")
    parser.add_argument("--own-acks", action="store_true")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    asyncio.run(main(parse(sys.argv[1:])))
