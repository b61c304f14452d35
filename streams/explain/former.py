"""Finds the decisions of requests: where the ledger knows them to lie, else by reading through."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from streams import topics
from streams.explain.ledger_places import find_decided
from streams.explain.trace import Placed
from streams.explain.trace_reader import TraceReader, partition_of
from streams.records import Decision


class _Named(Struct):
    """What is read of every decision; the whole is read of the wanted ones only."""

    decision_id: str = ""


_named = msgspec.json.Decoder(_Named)


async def find_decisions(
    reader: TraceReader, roots: Mapping[str, str], *, database_url: str | None
) -> dict[str, Placed[Decision]]:
    """Return the effective decisions that there are, by their ids.

    What the ledger has read is not read again: behind it lie seconds of decisions, in the topic
    seven days.

    Parameters
    ----------
    reader : TraceReader
        Started, and not reading anything else meanwhile.
    roots : mapping
        Decision ids and their budget roots.
    database_url : str, optional
        The ledger. A decision that it has booked and the topic no longer holds has no record.
    """
    places, cursors = await asyncio.to_thread(find_decided, database_url, list(roots))
    found: dict[str, Placed[Decision]] = {
        identity: Placed(
            topic=topics.DECISIONS,
            partition=place.partition,
            offset=place.offset,
            at_ms=place.decided_ms,
            problem="it is no longer in the topic",
        )
        for identity, place in places.items()
    }

    def is_wanted(record: Any) -> bool:
        return _identity(record.value) in roots

    offsets: dict[int, list[int]] = defaultdict(list)
    for place in places.values():
        offsets[place.partition].append(place.offset)
    records: list[Placed[Decision]] = []
    for number, at in offsets.items():
        records += await reader.pick(topics.DECISIONS, number, Decision, is_wanted, at=at)
    numbers = await reader.partitions(topics.DECISIONS)
    for number in {partition_of(roots[i], numbers) for i in roots.keys() - places.keys()}:
        start = cursors.get(number, 0)
        more, _ = await reader.search(topics.DECISIONS, number, Decision, is_wanted, start=start)
        records += more
    for kept in records:
        # The decision at the lowest offset counts.
        if kept.record is not None:
            known = found.get(kept.record.decision_id)
            if known is None or known.offset == kept.offset:
                found[kept.record.decision_id] = kept
    return found


def _identity(value: bytes | None) -> str:
    try:
        return _named.decode(value or b"").decision_id
    except msgspec.DecodeError:
        return ""
