"""From pages and the log back to the state: what a worker does that takes a partition over.

``load`` the pages, then fold the log from the position that was kept with them: the decisions in
the order of their offsets, and before each batch of decisions the outcomes that it had seen. The
gate lets each change pass into those pages only that do not contain it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from policy.choices import Choice
from policy.decide import Decided, decide
from policy.money import Price
from policy.outcomes import Arrival
from policy.pages import PageKey, Position
from policy.requests import Incoming, Requests
from policy.reservation_rows import blank_rows
from policy.settle import Verdict, expire, release_parked
from policy.state import State
from policy.take import Taken, take
from policy.terms import PolicyError


class RecoveryError(PolicyError):
    """The tables are ahead of the topics: the end of a topic was lost, or it is another topic."""

    def __init__(self, position: Position, contained: Position) -> None:
        super().__init__(f"the topics end at {position}, but the tables contain {contained}")
        self.position = position
        self.contained = contained


class PageError(PolicyError):
    """A page cannot be read; the state that it was to be loaded into is of no use."""

    def __init__(self, page: PageKey, cause: Exception) -> None:
        super().__init__(f"page {page} cannot be read: {cause}")
        self.page = page


@dataclass(frozen=True, slots=True, kw_only=True)
class Folded:
    """A decision of the log; ``outcomes`` and ``batch`` are what it says it had seen."""

    offset: int
    choice: Choice
    batch: int
    outcomes: int
    decided_ms: int
    expires_ms: int


def page_position(value: bytes) -> Position:
    """Return the position of a page as it was written."""
    decisions, outcomes, clock_ms, _ = msgspec.msgpack.decode(value)
    return Position(decisions, outcomes, clock_ms)


def load(state: State, pages: Mapping[PageKey, bytes], *, position: Position) -> None:
    """Load pages into a new state and begin to fold at ``position``.

    Raises
    ------
    PageError
        If a page is broken.
    """
    for page in sorted(pages, key=lambda p: (p[0], str(p[1]).zfill(20))):
        try:
            state.load_page(page, pages[page])
        except (ValueError, TypeError, LookupError, OverflowError, msgspec.MsgspecError) as exc:
            raise PageError(page, exc) from exc
    state.gate.position = position
    state.gate.folding = True
    state.redo = state.reservations.expired_by()


def fold_decisions(state: State, batch: Iterable[Folded]) -> list[tuple[Arrival, Verdict]]:
    """Fold the decisions of one batch; the outcomes that it had seen were settled before.

    A later copy of a decided request, as a worker may write that has lost its partition, has no
    effect. Returns the parked outcomes that were released, with what became of them.
    """
    released: list[tuple[Arrival, Verdict]] = []
    for effective, part in _parts(state, batch):
        if effective:
            first = part[0]
            state.gate.begin("decisions", first.offset)
            expire(state, first.decided_ms, cause=2 * first.offset + 1)
            taken = _taken(state, part)
            state.budgets.roll(taken.pairs.budgets, taken.now_ms)
            state.budgets.hold(
                taken.pairs,
                reserved=taken.reserved_nanousd,
                expected_nanousd=taken.expected_nanousd,
            )
            take(state, taken)
            released += release_parked(state, taken.requests.ids)
            state.gate.tick(first.decided_ms)
        state.gate.advance("decisions", part[-1].offset + 1)
    return released


def _parts(state: State, batch: Iterable[Folded]) -> list[tuple[bool, list[Folded]]]:
    """Divide a batch into runs of decisions that take effect and of later copies.

    Two workers that both believed to own a partition may have written batches that look alike, one
    behind the other: what follows on a copy was not decided together with what is before it.
    """
    parts: list[tuple[bool, list[Folded]]] = []
    seen: set[bytes] = set()
    for folded in batch:
        id_ = folded.choice.request.id
        known = state.reservations.find(id_)
        effective = id_ not in seen and (known is None or known >= folded.offset)
        seen.add(id_)
        if not parts or parts[-1][0] != effective:
            parts.append((effective, []))
        parts[-1][1].append(folded)
    return parts


def _taken(state: State, batch: Sequence[Folded]) -> Taken:
    choices = [folded.choice for folded in batch]
    priced = [*dict.fromkeys((c.arm, c.price) for c in choices if c.arm is not None)]
    columns: dict[tuple[str | None, Price | None], int] = {p: n for n, p in enumerate(priced)}
    paths = [state.budgets.paths.number(" ".join(p[0] for p in c.budgets)) for c in choices]
    pairs = state.budgets.paths.pairs(np.array(paths, np.int64))
    positions = [position for choice in choices for position in choice.budgets]
    dual_price, planned_usd = np.zeros(len(pairs.budgets)), np.zeros(len(pairs.budgets))
    dual_price[pairs.place] = [position[5] for position in positions]
    planned_usd[pairs.place] = [position[6] for position in positions]
    ttl_ms = state.limits.reservation_ttl_ms
    expires_ms = [f.expires_ms or f.decided_ms + ttl_ms for f in batch]
    return Taken(
        offsets=np.array([f.offset for f in batch], np.int64),
        requests=Requests.of([c.request for c in choices], width=state.dimensions + 1),
        column=np.array([columns.get((c.arm, c.price), -1) for c in choices], np.int64),
        arms=[str(arm) for arm, _ in priced],
        blank=blank_rows([price for _, price in priced]),
        explored=np.array([c.explored for c in choices], np.bool_),
        reserved_nanousd=np.array([c.reserved_nanousd for c in choices], np.int64),
        expected_nanousd=np.array([c.cost_nanousd for c in choices], np.int64),
        expires_ms=np.array(expires_ms, np.int64),
        pairs=pairs,
        paths=np.array(paths, np.int64),
        dual_price=dual_price,
        planned_usd=planned_usd,
        now_ms=batch[0].decided_ms,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundSeen:
    """What a round of decisions says of itself; see :class:`policy.decide.Decided`."""

    now_ms: int
    curve_at: int
    waiting_before: int = 0
    fresh_from: int = 0


def decide_again(state: State, ranked: Sequence[Incoming], seen: RoundSeen) -> Decided:
    """Decide a round of the log anew, on the state that precedes it.

    Parameters
    ----------
    state : State
        Contains everything that the round had seen; changed as by :func:`policy.decide.decide`.
    ranked : sequence of Incoming
        All requests of the round, those that went on waiting too, in the order of their offsets.
    seen : RoundSeen
        What the round's records say.
    """
    # A worker makes its spend curve anew when it starts, and so does its catalog's every change.
    if seen.curve_at in (-1, state.gate.position.decisions):
        state.curve = None
    new = seen.fresh_from >= 0
    fresh = [r for r in ranked if new and r.offset >= seen.fresh_from]
    held = ranked[: len(ranked) - len(fresh)]
    state.deferred = {}
    for request in held:
        state.deferred.setdefault(request.budget, deque()).append(request)
    state.freed = set(state.deferred)
    state.waiting = {request.id: request.request_print for request in held}
    # Only their number matters, and only once there is no room for more.
    if seen.waiting_before + len(fresh) >= state.limits.deferred_max:
        others = range(seen.waiting_before - len(held))
        state.waiting |= {b"%d" % number: 0 for number in others}
    decided = decide(state, fresh, now_ms=seen.now_ms)
    # Of those that waited without being ranked nothing is known but how many they were.
    decided.waiting_before = seen.waiting_before
    state.deferred, state.waiting = {}, {}
    state.freed.clear()
    return decided


def needed(state: State) -> Position:
    """Return how far both logs must be folded before anything new may happen.

    A page may contain outcomes after the last decision of the log; until they have been folded
    into the other pages too, its position would be wrong.
    """
    contained = state.gate.contained.values()
    return Position(
        max((p.decisions for p in contained), default=0),
        max((p.outcomes for p in contained), default=0),
    )


def finish(state: State) -> None:
    """End the folding: from here on every change is new.

    Raises
    ------
    RecoveryError
        If a page contains more than the logs held: their end was lost, or they are others.
    """
    position, contained = state.gate.position, needed(state)
    if position.decisions < contained.decisions or position.outcomes < contained.outcomes:
        raise RecoveryError(position, contained)
    state.gate.folding = False
    state.gate.contained.clear()
    state.redo.clear()
    state.freed.clear()
