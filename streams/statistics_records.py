"""Records that tell other partitions what one has learned."""

from __future__ import annotations

import base64
from collections.abc import Mapping

from policy.pages import Position
from streams.records import Statistics, encode

CLOCK = encode(Statistics(partition=-1, arm="", policy="", decisions=0, outcomes=0, state_b64=""))
"""A record of the statistics that teaches nothing; its acknowledgement tells the time."""


def statistics_records(
    partition: int, policy: str, position: Position, learned: Mapping[str, bytes]
) -> tuple[list[bytes], list[bytes]]:
    """Return keys and values of what a partition has learned of arms up to a position."""
    values = [
        encode(
            Statistics(
                partition=partition,
                arm=arm,
                policy=policy,
                decisions=position.decisions,
                outcomes=position.outcomes,
                state_b64=base64.b64encode(state).decode(),
            )
        )
        for arm, state in learned.items()
    ]
    return [f"{partition}:{arm}".encode() for arm in learned], values
