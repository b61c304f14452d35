"""Named places at which a process can be made to end, to stop or to fail; for tests alone.

``TOLLWAY_FAILPOINT="worker.after_append:kill:3"`` kills a worker with SIGKILL when it comes to
that place for the third time. What follows must be as if it had happened to the process at the
worst of moments; ``tests/test_failpoints.py`` holds that. Without the variable a place costs one
comparison.
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass

POINTS = (
    "worker.before_decide",
    "worker.after_decide",
    "worker.after_send",
    "worker.after_settle",
    "worker.before_flush",
    "worker.after_append",
    "worker.between_pages",
    "worker.after_pages",
    "worker.after_position",
    "worker.before_release",
    "worker.before_fold",
    "worker.after_fold",
    "sink.after_claim",
    "sink.before_move",
    "sink.before_copy",
    "sink.before_commit",
    "sink.after_commit",
    "sink.after_flush",
)
ACTIONS = ("kill", "stop", "raise")


class FailpointError(Exception):
    """What the action ``raise`` raises; nothing catches it by name."""


@dataclass(slots=True)
class Failpoint:
    """Which place, what happens there, and how many times it must be passed before."""

    point: str
    action: str
    left: int


_armed: Failpoint | None = None


def parse(text: str) -> Failpoint:
    """Return the failpoint that a text such as ``worker.after_append:kill:3`` names.

    Raises
    ------
    ValueError
        If it names none.
    """
    point, _, rest = text.partition(":")
    action, _, count = rest.partition(":")
    if point not in POINTS or action not in ACTIONS:
        raise ValueError(f"not POINT:ACTION[:COUNT] of {', '.join(POINTS)}; {', '.join(ACTIONS)}")
    if count and not (count.isdecimal() and int(count) >= 1):
        raise ValueError(f"the count must be a whole number from 1, got {count!r}")
    return Failpoint(point, action, int(count or 1))


def arm(failpoint: Failpoint | None) -> None:
    """Let this process fail there, once."""
    global _armed
    _armed = failpoint


def pass_point(point: str) -> None:
    """Come to a place; what was armed for it happens now."""
    if _armed is not None and _armed.point == point:
        _armed.left -= 1
        if _armed.left == 0:
            _fail(_armed)


def _fail(failpoint: Failpoint) -> None:
    arm(None)
    sys.stderr.write(f"failpoint {failpoint.point}: {failpoint.action}\n")
    sys.stderr.flush()
    if failpoint.action == "raise":
        raise FailpointError(failpoint.point)
    os.kill(os.getpid(), signal.SIGKILL if failpoint.action == "kill" else signal.SIGSTOP)
