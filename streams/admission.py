"""Which requests of a batch are decided, and why the others are not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from policy.requests import Requests
from policy.settle import Verdict
from streams import topics
from streams.intake import Intake

MISPLACED = Verdict("refused", "wrong_partition", "not the murmur2 of its key")


def admit(
    intake: Intake, records: Sequence[Any], *, number: int, partitions: int
) -> tuple[Requests, dict[int, Verdict]]:
    """Return the requests of these records, and the refused ones by their offsets.

    A request that was read after its deadline is refused and among those to be decided, too: its
    decision says that there is no call.
    """
    requests, errors = intake.requests(records)
    refused = {
        records[place].offset: Verdict("refused", error.reason, error.detail)
        for place, error in errors.items()
    }
    lost = misplaced(records, number, partitions)
    if lost:
        kept = np.array([offset not in lost for offset in requests.offsets], np.bool_)
        rows = np.flatnonzero(~kept).tolist()
        refused |= {requests.offsets[row]: MISPLACED for row in rows}
        requests = requests.where(kept)
    for row, constraints in requests.constraints.items():
        deadline_ms = constraints.deadline_ms
        if deadline_ms is not None and requests.at_ms[row] > deadline_ms:
            verdict = Verdict("refused", "deadline_past", "read after its deadline")
            refused[requests.offsets[row]] = verdict
    return requests, refused


def misplaced(records: Sequence[Any], number: int, partitions: int) -> set[int]:
    """Return the offsets of records whose key belongs to another partition.

    A budget that lay in two partitions would have two owners, and its limit twice.
    """
    keys = {record.key for record in records}
    lost = {key for key in keys if topics.home_partition(key or b"", partitions) != number}
    return {record.offset for record in records if record.key in lost} if lost else set()
