"""Money, folded anew from the topics: caps at every position of the log, and the ledger's rows."""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass, field

from streams.topics import DECISIONS, OUTCOMES
from tests.nemesis_parts.checker import Expected, Verdict
from tests.nemesis_parts.evidence import Decided, Evidence, Ledger
from tests.nemesis_parts.world import PARTITIONS, World

BudgetWindow = tuple[str, int]


@dataclass(slots=True)
class _Open:
    """A reservation in effect: ``expired`` once its whole amount counts as spent."""

    decided: Decided
    expired: bool = False


@dataclass(slots=True, kw_only=True)
class _Fold:
    """What the decisions and outcomes of a partition hold on each budget's window."""

    world: World
    reserved: dict[BudgetWindow, int] = field(default_factory=lambda: defaultdict(int))
    settled: dict[BudgetWindow, int] = field(default_factory=lambda: defaultdict(int))
    open: dict[str, _Open] = field(default_factory=dict)
    _order: deque[str] = field(default_factory=deque)

    def keys(self, decided: Decided) -> list[BudgetWindow]:
        """Return the windows on which a decision reserves: those of its own time."""
        parts = decided.budget.split("/")
        paths = ["/".join(parts[: n + 1]) for n in range(len(parts))]
        return [(path, self.start_ms(path, decided.decided_ms)) for path in paths]

    def start_ms(self, budget: str, at_ms: int) -> int:
        """Return where the window begins that holds this time."""
        window = self.world.budgets[budget][1]
        if window == "total":
            return 0
        length_ms = 1_000 * int(window.removesuffix("s"))
        return at_ms - at_ms % length_ms

    def take(self, decided: Decided) -> None:
        """Let a decision take effect."""
        for key in self.keys(decided):
            self.reserved[key] += decided.reserved_nanousd
        self.open[decided.decision_id] = _Open(decided)
        self._order.append(decided.decision_id)

    def expire(self, now_ms: int) -> None:
        """Count as spent what was not settled in time; all reservations live equally long."""
        while self._order:
            found = self.open.get(self._order[0])
            if found is not None and found.decided.expires_ms >= now_ms:
                return
            self._order.popleft()
            if found is not None:
                found.expired = True
                self._move(found.decided, found.decided.reserved_nanousd)

    def settle(self, identity: str, cost_nanousd: int) -> None:
        """Let the usage of a decision count."""
        found = self.open.pop(identity)
        if found.expired:
            for key in self.keys(found.decided):
                self.settled[key] += cost_nanousd - found.decided.reserved_nanousd
        else:
            self._move(found.decided, cost_nanousd)

    def _move(self, decided: Decided, spent_nanousd: int) -> None:
        for key in self.keys(decided):
            self.reserved[key] -= decided.reserved_nanousd
            self.settled[key] += spent_nanousd


def check_caps(
    verdict: Verdict, world: World, evidence: Evidence, effective: dict[str, Decided],
    expected: Expected,
) -> None:  # fmt: skip
    """``reserved + settled <= limit`` just after every decision, and as the decision itself says.

    What a decision had seen of the outcomes it says itself; it cannot have seen less than the
    decisions before it. Outcomes that came before their decision count when the call in which it
    was made has ended.
    """
    used: dict[int, list[tuple[int, str, int]]] = defaultdict(list)
    for identity, usage in expected.usage.items():
        used[effective[identity].partition].append((usage.offset, identity, usage.cost_nanousd))
    for number in range(PARTITIONS):
        fold, queue = _Fold(world=world), deque(sorted(used[number]))
        early: dict[str, int] = {}
        made: list[str] = []
        call: tuple[int, ...] = ()
        for decided in evidence.decisions:
            if decided.partition != number or effective[decided.decision_id] is not decided:
                continue
            if decided.call != call:
                for identity in [i for i in made if i in early]:
                    fold.settle(identity, early.pop(identity))
                made, call = [], decided.call
            while queue and queue[0][0] < decided.offsets.outcomes:
                _, identity, cost = queue.popleft()
                if identity in fold.open:
                    fold.settle(identity, cost)
                else:
                    early[identity] = cost
            fold.expire(decided.decided_ms)
            if decided.arm is not None:
                fold.take(decided)
                made.append(decided.decision_id)
            _check_position(verdict, world, fold, decided)


def _check_position(verdict: Verdict, world: World, fold: _Fold, decided: Decided) -> None:
    place = f"{DECISIONS}/{decided.partition}/{decided.offset}"
    said = {window[0]: window[1:] for window in decided.windows}
    for key in fold.keys(decided):
        budget, start_ms = key
        reserved, settled = fold.reserved[key], fold.settled[key]
        limit = world.budgets[budget][0]
        over = reserved + settled - limit
        if decided.arm is not None and over > 0:
            verdict.overspent_nanousd = max(verdict.overspent_nanousd, over)
            verdict.find(f"{place}: {budget} holds {reserved} + {settled} of {limit}")
        wanted = (start_ms, limit, reserved, settled)
        if said.get(budget) != wanted:
            verdict.find(
                f"{place}: says that {budget} stands at {said.get(budget)}, the topics say {wanted}"
            )


def check_ledger(
    verdict: Verdict, evidence: Evidence, effective: dict[str, Decided], expected: Expected,
    ledger: Ledger,
) -> None:  # fmt: skip
    """The ledger has read everything, and holds what follows from it: no more, no less."""
    for topic in (DECISIONS, OUTCOMES):
        for number in range(PARTITIONS):
            end, found = evidence.ends[topic, number], ledger.nexts.get((topic, number), 0)
            if end != found:
                verdict.find(f"{topic}/{number} ends at {end}, the ledger is at {found}", lost=1)
    places = {identity: (d.partition, d.offset) for identity, d in effective.items()}
    for identity in places.keys() | ledger.places.keys():
        wanted_place, found_place = places.get(identity), ledger.places.get(identity)
        if wanted_place != found_place:
            verdict.find(
                f"{identity}: in effect at {wanted_place}, in the ledger at {found_place}",
                lost=found_place is None,
                doubled=wanted_place is None,
            )
    wanted = {
        identity: _amounts(decided, expected, ledger.swept_ms.get(decided.partition, 0))
        for identity, decided in effective.items()
        if decided.arm is not None
    }
    for identity in wanted.keys() | ledger.amounts.keys():
        amounts, booked = wanted.get(identity, {}), ledger.amounts.get(identity, {})
        if amounts != booked:
            more = sum(booked.values()) > sum(amounts.values())
            verdict.find(
                f"{identity}: booked {booked}, the topics say {amounts}",
                lost=not more,
                doubled=more,
            )
    for (identity, kind), count in ledger.kinds.items():
        if count > 1:
            verdict.find(f"{identity}: {count} rows of {kind}", doubled=count - 1)


def _amounts(decided: Decided, expected: Expected, swept_ms: int) -> dict[str, int]:
    reserved, usage = decided.reserved_nanousd, expected.usage.get(decided.decision_id)
    if usage is None:
        lapsed = swept_ms > decided.expires_ms
        return {"reserve": reserved} | ({"expire": reserved} if lapsed else {})
    amounts = {"reserve": reserved, "settle": min(usage.cost_nanousd, reserved)}
    if usage.clock_ms > decided.expires_ms:
        amounts |= {"expire": reserved, "adjust": reserved}
    if usage.cost_nanousd < reserved:
        amounts["release"] = reserved - usage.cost_nanousd
    if usage.cost_nanousd > reserved:
        amounts["overrun"] = usage.cost_nanousd - reserved
    return amounts
