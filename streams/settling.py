"""Outcomes from records into the state: for the worker, its recovery and a replay alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from policy.settle import Verdict, pass_over, settle_all
from policy.state import State
from streams.admission import MISPLACED, misplaced
from streams.intake import Intake


def settle_records(
    state: State, intake: Intake, records: Sequence[Any], partitions: int
) -> list[Verdict]:
    """Apply the next records of a partition's outcomes; a bad one lets only the time go on."""
    arrivals, errors = intake.outcomes(records)
    refused = {place: Verdict("refused", e.reason, e.detail) for place, e in errors.items()}
    if records and (lost := misplaced(records, records[0].partition, partitions)):
        places = (place for place, record in enumerate(records) if record.offset in lost)
        refused |= dict.fromkeys(places, MISPLACED)
    if not refused:
        return settle_all(state, arrivals)
    verdicts: list[Verdict] = []
    # Read rows and records are not in step where something was refused.
    row = start = 0
    for place, record in enumerate(records):
        if place not in refused:
            row += 1
            continue
        verdicts += settle_all(state, arrivals.between(start, row))
        pass_over(state, record.offset, record.timestamp)
        verdicts.append(refused[place])
        row += place not in errors
        start = row
    return verdicts + settle_all(state, arrivals.between(start, row))
