"""What workers and sinks tell each other and their operators."""

from __future__ import annotations

from streams.records.fields import Record


class Statistics(Record):
    """What one partition has learned of one arm. Topic ``statistics``, key ``partition:arm``."""

    partition: int
    arm: str
    policy: str
    decisions: int
    outcomes: int
    state_b64: str


class DeadLetter(Record):
    """Where an unreadable record lay and why; never its payload. Key: the record's key."""

    topic: str
    partition: int
    offset: int
    reason: str
    detail: str
    sha256: str
    size: int
    at_ms: int


class LedgerHead(Record):
    """A link of the ledger's chain that was committed. Topic ``ledger-heads``, key ``partition``.

    ``sha256`` is the link's hash, the next offsets and line are where it ends. ``signature`` is
    the HMAC-SHA256, by the key that ``key_id`` names, of the fields before it.
    """

    partition: int
    link: int
    sha256: str
    next_decision: int
    next_outcome: int
    next_line: int
    key_id: str
    signature: str
