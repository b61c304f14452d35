"""What a batch's records say, worked out before the ledger is asked anything."""

from __future__ import annotations

from typing import NamedTuple

from streams.ledger.fold import Booked
from streams.ledger.reading import (
    booked,
    check_partition,
    read_decision,
    read_outcome,
    request_of,
    root_of,
)
from streams.ledger.rows import Raw, Row, decision_row
from streams.ledger.unit import Batch, Unit
from streams.records import BadRecordError, Outcome


class Readings(NamedTuple):
    """The readable records of a batch, and those that are refused with their topic's kind.

    Of a decision only its row and what the books need are kept: its candidates are some hundred
    objects, and the next decision is read into their memory. An outcome comes with the decision id
    of its request and the largest timestamp of the batch's outcomes up to its own; ``clock_ms`` is
    that of all of them.
    """

    decisions: list[tuple[Raw, Row, Booked]]
    outcomes: list[tuple[Raw, Outcome, str, int]]
    refused: list[tuple[str, Raw, BadRecordError]]
    clock_ms: int


def read_batch(unit: Unit, batch: Batch) -> Readings:
    """Read all records of a batch; nothing else is touched."""
    partition, partitions = unit.partition, unit.partitions
    readings = Readings([], [], [], 0)
    for raw in batch.decisions:
        try:
            decision, mark = read_decision(raw.value)
            check_partition(root_of(decision.budget).encode(), partition, partitions)
            row = decision_row(partition, raw.offset, decision, mark)
            readings.decisions.append((raw, row, booked(decision, mark, offset=raw.offset)))
        except BadRecordError as error:
            readings.refused.append(("decision", raw, error))
    clock_ms = 0
    for raw in batch.outcomes:
        # Unreadable records move the clock too: their timestamps are the broker's.
        clock_ms = max(clock_ms, raw.at_ms)
        try:
            outcome = read_outcome(raw.value)
            check_partition(raw.key or b"", partition, partitions)
        except BadRecordError as error:
            readings.refused.append(("outcome", raw, error))
            continue
        request = request_of(raw.key, outcome.request_id)
        readings.outcomes.append((raw, outcome, request, clock_ms))
    return readings._replace(clock_ms=clock_ms)


def refuse_batch(batch: Batch, error: BadRecordError) -> Readings:
    """Return readings that refuse every record."""
    refused = [("decision", raw, error) for raw in batch.decisions]
    refused += [("outcome", raw, error) for raw in batch.outcomes]
    clock_ms = max((raw.at_ms for raw in batch.outcomes), default=0)
    return Readings([], [], refused, clock_ms)
