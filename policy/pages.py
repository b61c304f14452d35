"""Pages, positions and the gate: how state survives a kill without doing anything twice.

The topics are the log, the tables hold checkpoints. State is divided into pages. A page that is
written carries its position: the next offsets of ``decisions`` and of ``outcomes`` that it does
not contain. Writing many pages is not atomic, so after a kill the pages may be of different
positions. Recovery folds the log again from the oldest change that no written page holds, and the
gate lets each change pass only into pages that do not contain it yet. This is how databases
recover (ARIES: page sequence numbers, a table of dirty pages, redo from the oldest of them).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from policy.terms import Bools, Ints

PageKey = tuple[str, int | str]
"""Kind of page (``budget``, ``arm``, ``window``, ``reservation``, ``ring``) and which of them.

``learned`` is one page for all arms, in place of their own (``policy.terms.SpansArms``).
"""
LEARNED: PageKey = ("learned", "")


class Position(NamedTuple):
    """Next offsets that are not contained, of the decisions and of the outcomes, and the clock.

    The clock is the latest time of a record that is contained.
    """

    decisions: int = 0
    outcomes: int = 0
    clock_ms: int = 0


@dataclass(slots=True)
class Gate:
    """Notes which pages a change dirties; while a log is folded, holds back what a page has.

    ``begin`` names the record whose changes follow. ``dirty`` maps each page that has changed
    since it was last written to the position before its first such change. ``needs``, while it is
    set, is the position before an earlier record whose content these changes need to be redone.
    """

    dirty: dict[PageKey, Position]
    contained: dict[PageKey, Position]
    log: Literal["decisions", "outcomes"] = "decisions"
    offset: int = 0
    position: Position = field(default_factory=Position)
    folding: bool = False
    needs: Position | None = None

    @classmethod
    def new(cls) -> Gate:
        """Return a gate at the beginning of both logs."""
        return cls(dirty={}, contained={})

    def begin(self, log: Literal["decisions", "outcomes"], offset: int) -> None:
        """Name the record whose changes follow."""
        self.log = log
        self.offset = offset

    def passes(self, page: PageKey) -> bool:
        """Return whether the current record's change is to be applied to the page; mark it."""
        if self.folding and page in self.contained:
            contained = self.contained[page]
            at = contained.decisions if self.log == "decisions" else contained.outcomes
            if self.offset < at:
                return False
        if page not in self.dirty:
            self.dirty[page] = self.position
        if self.needs is not None:
            self.dirty[page] = Position(*map(min, self.dirty[page], self.needs))
        return True

    def passes_pages(self, kind: str, numbers: Ints) -> Bools | None:
        """Return :meth:`passes` for each of these pages of a kind, which may repeat; (m,).

        None where all pass, as they do except while a log is folded.
        """
        answers = {number: self.passes((kind, number)) for number in set(numbers.tolist())}
        if all(answers.values()):
            return None
        return np.array([answers[number] for number in numbers.tolist()], np.bool_)

    def cuts(self, log: Literal["decisions", "outcomes"]) -> list[int]:
        """Return the offsets of a log up to which some page was written, ascending.

        Between two of them every page contains all records or none.
        """
        if not self.folding:
            return []
        positions = self.contained.values()
        return sorted({p.decisions if log == "decisions" else p.outcomes for p in positions})

    def advance(self, log: Literal["decisions", "outcomes"], next_offset: int) -> None:
        """Note that everything below ``next_offset`` of a log is now contained in the state."""
        decisions, outcomes, clock_ms = self.position
        if log == "decisions":
            if next_offset > decisions:
                self.position = Position(next_offset, outcomes, clock_ms)
        elif next_offset > outcomes:
            self.position = Position(decisions, next_offset, clock_ms)

    def tick(self, clock_ms: int) -> None:
        """Let the clock go on; it never goes back."""
        if clock_ms > self.position.clock_ms:
            self.position = self.position._replace(clock_ms=clock_ms)

    def low(self, parked: Iterable[Position] = ()) -> Position:
        """Return where a fold would have to begin if the process ended now.

        ``parked`` are positions before records that have had no effect yet.
        """
        return Position(
            *(min(column) for column in zip(self.position, *self.dirty.values(), *parked,
                                            strict=True))
        )  # fmt: skip
