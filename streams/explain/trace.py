"""All that is known of one request, gathered from the topics and the ledger; values only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import msgspec
from msgspec import Struct

from policy.catalog import Catalog
from streams.records import DeadLetter, Decision, Outcome, Request

R = TypeVar("R", bound=Struct, covariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed(Generic[R]):
    """A record where it lies; ``record`` is None if it cannot be read, ``problem`` says why."""

    topic: str
    partition: int
    offset: int
    at_ms: int
    record: R | None = None
    problem: str = ""

    @property
    def place(self) -> str:
        """Topic, partition and offset in the form that dead letters are keyed by."""
        return f"{self.topic}/{self.partition}/{self.offset}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """A row of the ledger's journal."""

    kind: str
    debit_account: str
    credit_account: str
    amount_nanousd: int
    event_ms: int
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """A record of the request that the ledger did not let count, and why."""

    topic: str
    partition: int
    offset: int
    part: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """What topics and ledger hold of a request.

    ``partition_of_key`` is where the request's key belongs. ``overtaken`` says that a later
    request of the partition was decided before this one. ``ledger_row`` is the ledger's row of
    the decision, ``ledger_problem`` why the ledger could not be asked. ``catalog`` is what the
    decision had seen; without a decision, the present one. ``searched`` says where was looked.
    """

    request_id: str
    root: str | None = None
    request: Placed[Request] | None = None
    decision: Placed[Decision] | None = None
    outcomes: Sequence[Placed[Outcome]] = ()
    dead_letters: Sequence[Placed[DeadLetter]] = ()
    transfers: Sequence[Transfer] = ()
    conflicts: Sequence[Conflict] = ()
    ledger_row: Mapping[str, Any] | None = None
    ledger_problem: str = ""
    catalog: Catalog = field(default_factory=Catalog)
    overtaken: bool = False
    partition_of_key: int | None = None
    searched: Sequence[str] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the trace as JSON takes it; unreadable records have a problem, no content."""
        return {
            "request_id": self.request_id,
            "root": self.root,
            "request": _as_dict(self.request),
            "decision": _as_dict(self.decision),
            "outcomes": [_as_dict(outcome) for outcome in self.outcomes],
            "dead_letters": [_as_dict(letter) for letter in self.dead_letters],
            "transfers": msgspec.to_builtins(self.transfers),
            "conflicts": msgspec.to_builtins(self.conflicts),
            "ledger_row": self.ledger_row,
            "ledger_problem": self.ledger_problem,
            "overtaken": self.overtaken,
            "partition_of_key": self.partition_of_key,
            "searched": list(self.searched),
        }


def _as_dict(placed: Placed[Struct] | None) -> dict[str, Any] | None:
    if placed is None:
        return None
    return {
        "topic": placed.topic,
        "partition": placed.partition,
        "offset": placed.offset,
        "at_ms": placed.at_ms,
        "problem": placed.problem,
        "record": None if placed.record is None else msgspec.to_builtins(placed.record),
    }
