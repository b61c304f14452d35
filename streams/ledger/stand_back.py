"""When to claim a partition again that another writer has fenced off."""

from __future__ import annotations

STAND_BACK_S, STAND_BACK_MAX_S = 1.0, 32.0
"""How long a partition is left to the writer that fenced it off; twice as long the next time."""


class StandBack:
    """Two deployments by mistake must not take a partition from each other before either books.

    All times are seconds of one clock.
    """

    def __init__(self) -> None:
        self._claim_at_s: dict[int, float] = {}
        # How long each partition was left to another writer, if nothing was booked since.
        self._last_s: dict[int, float] = {}

    def may_claim(self, partition: int, now_s: float) -> bool:
        """Return whether its time has come."""
        return now_s >= self._claim_at_s.get(partition, 0.0)

    def fenced(self, partition: int, now_s: float) -> None:
        """Leave the partition to the other writer, for longer each time in a row."""
        last_s = self._last_s.get(partition, STAND_BACK_S / 2)
        self._last_s[partition] = wait_s = min(2 * last_s, STAND_BACK_MAX_S)
        self._claim_at_s[partition] = now_s + wait_s

    def booked(self, partition: int) -> None:
        """Forget how often it was fenced off: records of it were booked."""
        self._last_s.pop(partition, None)

    def clear(self) -> None:
        """Forget everything: the group has given the partitions out anew."""
        self._claim_at_s.clear()
        self._last_s.clear()
