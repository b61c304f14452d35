"""One record at a time through the intake, which reads batches."""

from __future__ import annotations

from policy.outcomes import Arrival
from policy.requests import Incoming
from streams.intake import Intake, Raw


def one_request(
    intake: Intake, value: bytes | None, *, key: bytes | None = b"acme", offset: int = 0,
    at_ms: int = 0, known: bool = False,
) -> Incoming:  # fmt: skip
    """Return the request, or raise the BadRecordError that it is refused with."""
    requests, refused = intake.requests([Raw(key, value, offset, at_ms)], known=known)
    if refused:
        raise refused[0]
    return requests.row(0)


def one_outcome(
    intake: Intake, value: bytes | None, *, key: bytes | None = b"acme", offset: int = 0,
    at_ms: int = 0,
) -> Arrival:  # fmt: skip
    """Return the outcome, or raise the BadRecordError that it is refused with."""
    arrivals, refused = intake.outcomes([Raw(key, value, offset, at_ms)])
    if refused:
        raise refused[0]
    return arrivals.row(0)
