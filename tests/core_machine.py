"""One partition with its logs and its tables in memory, for tests of the core."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import msgspec
import numpy as np

from policy.acceptance import PARK_MS
from policy.catalog import BudgetSpec, Catalog
from policy.choices import Choice
from policy.decide import Decided, decide
from policy.money import Price
from policy.outcomes import Arrival, Arrivals
from policy.pages import PageKey, Position
from policy.recover import (
    Folded,
    RoundSeen,
    decide_again,
    finish,
    fold_decisions,
    load,
    needed,
    page_position,
)
from policy.registry import make_policy
from policy.requests import Incoming
from policy.settle import Verdict, settle, settle_all
from policy.state import Limits, State
from policy.terms import Arm, Contexts, Floats, Learning, Ranking, Settings

DIMENSIONS = 3


class MeanPolicy:
    """Ranks by the mean reward and the mean output length of each arm; enough to test the core."""

    name = "mean"

    def __init__(self, settings: Settings) -> None:
        self.arms: tuple[Arm, ...] = ()
        self.sums: dict[str, np.ndarray] = {}

    def set_arms(self, arms: tuple[Arm, ...]) -> None:
        self.arms = arms

    def rank(self, contexts: Contexts, *, dual_price: Floats, eligible: np.ndarray) -> Ranking:
        shape = (len(contexts), len(self.arms))
        reward, tokens = np.full(shape, 0.5), np.full(shape, 20.0)
        for column, arm in enumerate(self.arms):
            count, total, lengths, length, chosen = self._sums(arm.arm)
            reward[:, column] = (0.5 + total) / (1 + count) + 1e-6 * chosen
            tokens[:, column] = (20.0 + length) / (1 + lengths)
        prices = [(0, 0) if a.price is None else (a.price.input, a.price.output) for a in self.arms]
        cost = np.array([
            [(t * p_in + tokens[i, j] * p_out) / 1e12 for j, (p_in, p_out) in enumerate(prices)]
            for i, t in enumerate(contexts.input_tokens)
        ]).reshape(shape)  # fmt: skip
        score = reward - dual_price[:, None] * cost
        best = np.where(eligible, score, -np.inf).argmax(axis=1) if shape[1] else np.zeros(shape[0])
        propensity = np.zeros(shape)
        for row, column in enumerate(best.astype(int)):
            propensity[row, column] = float(eligible[row].any())
        return Ranking(reward=reward, cost_usd=cost, score=score, propensity=propensity,
                       explored=np.zeros(shape[0], np.bool_))  # fmt: skip

    def decided(self, arm: str, features: Floats, *, explored: bool) -> None:
        self._sums(arm)[4] += 1

    def learn(self, learning: Learning) -> None:
        sums = self._sums(learning.arm)
        if learning.reward is not None:
            sums[:2] += (1, learning.reward * (1 + 1e-3 * learning.age))
        if learning.output_tokens is not None:
            sums[2:4] += (1, learning.output_tokens)

    def dump(self, arm: str) -> bytes:
        return self._sums(arm).tobytes()

    def load(self, arm: str, state: bytes) -> None:
        self.sums[arm] = np.frombuffer(state).copy()

    def merge(self, arm: str, source: int, state: bytes) -> None:
        raise NotImplementedError

    def _sums(self, arm: str) -> np.ndarray:
        return self.sums.setdefault(arm, np.zeros(5))


def catalog(
    *, limit: int = 10_000_000, window: str = "total", paced: bool = True, policy: str = "mean",
    **options: float,
) -> Catalog:  # fmt: skip
    """Return two arms, and a root with a team and two keys below it."""
    settings = Settings(dimensions=DIMENSIONS, policy=policy, options=dict(options))
    result = Catalog(settings=settings)
    result = result.with_arm(
        Arm(arm="small", price=Price(version=1, input=100_000, output=200_000))
    )
    result = result.with_arm(
        Arm(arm="large", price=Price(version=1, input=2_000_000, output=8_000_000))
    )
    for budget, share in (("acme", 10), ("acme/team", 8), ("acme/team/a", 5), ("acme/team/b", 5)):
        result = result.with_budget(BudgetSpec(
            budget=budget, limit_nanousd=limit * share // 10, window=window, paced=paced
        ))  # fmt: skip
    return result


def incoming(
    number: int,
    *,
    at_ms: int,
    offset: int,
    budget: str = "acme/team/a",
    max_output_tokens: int = 100,
    print_: int = 1,
    **more: object,
) -> Incoming:
    """Return a request whose features follow from its number."""
    features = np.array([*np.sin(number * np.arange(1.0, DIMENSIONS + 1)), 1.0], np.float32)
    return Incoming(
        offset=offset, id=digest(number), request_print=print_, budget=budget, features=features,
        input_tokens=50, max_output_tokens=max_output_tokens, at_ms=at_ms, seed=number, **more,
    )  # fmt: skip


def digest(number: int) -> bytes:
    """Return the digest of the request with this number."""
    return hashlib.blake2b(str(number).encode(), digest_size=16).digest()


def _told(choice: Choice) -> tuple[object, ...]:
    """Return what a record says of a choice."""
    return (
        choice.request.offset, choice.arm, choice.rejected, choice.max_output_tokens,
        choice.reserved_nanousd, choice.reward, choice.cost_nanousd, choice.propensity,
        choice.explored, list(choice.budgets), list(choice.why_not),
    )  # fmt: skip


@dataclass
class Machine:
    """A worker's partition: the logs outlive :meth:`crash`, the state does not."""

    catalog: Catalog
    limits: Limits = field(default_factory=Limits)
    decisions: list[Folded] = field(default_factory=list)
    outcomes: list[Arrival] = field(default_factory=list)
    tables: dict[PageKey, bytes] = field(default_factory=dict)
    kept: Position = field(default_factory=Position)
    requests: int = 0
    rounds: list[tuple[RoundSeen, list[Incoming], Decided]] = field(default_factory=list)
    older: list[tuple[PageKey, bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.state = self.new_state()

    def new_state(self) -> State:
        make = MeanPolicy if self.catalog.settings.policy == "mean" else make_policy
        return State(dimensions=DIMENSIONS, make_policy=make, catalog=self.catalog,
                     limits=self.limits)  # fmt: skip

    def decide(self, requests: list[Incoming], *, now_ms: int) -> Decided:
        decided = decide(self.state, requests, now_ms=now_ms)
        assert decided.first_offset == len(self.decisions)
        for choice in decided.choices:
            self.decisions.append(Folded(
                offset=len(self.decisions), choice=choice, batch=decided.batch,
                outcomes=decided.outcomes, decided_ms=decided.now_ms,
                expires_ms=decided.now_ms + self.limits.reservation_ttl_ms,
            ))  # fmt: skip
        if decided.choices:
            self._note(decided)
        return decided

    def _note(self, decided: Decided) -> None:
        """Keep what the records of a round would say of it."""
        seen = RoundSeen(
            now_ms=decided.now_ms, curve_at=decided.curve_at,
            waiting_before=decided.waiting_before, fresh_from=decided.fresh_from,
        )  # fmt: skip
        ranked = [*(choice.request for choice in decided.choices), *decided.waited]
        ranked.sort(key=lambda request: request.offset)
        self.rounds.append((seen, ranked, decided))

    def decided_again(self) -> State:
        """Return the state after all rounds were made anew; each must come out alike."""
        state = self.new_state()
        for seen, ranked, decided in self.rounds:
            self._fold_outcomes(state, decided.outcomes)
            again = decide_again(state, ranked, seen)
            assert list(map(_told, again.choices)) == list(map(_told, decided.choices))
            assert again.curve_at == decided.curve_at
        self._fold_outcomes(state, len(self.outcomes))
        return state

    def settle(self, **fields: object) -> Verdict:
        arrival = Arrival(offset=len(self.outcomes), **fields)  # type: ignore[arg-type]
        self.outcomes.append(arrival)
        return settle(self.state, arrival)

    def settle_all(self, several: list[dict[str, object]]) -> list[Verdict]:
        first = len(self.outcomes)
        arrivals = [Arrival(offset=first + n, **fields) for n, fields in enumerate(several)]  # type: ignore[arg-type]
        self.outcomes += arrivals
        return settle_all(self.state, Arrivals.of(arrivals))

    def flush(self, *, only: int | None = None) -> None:
        """Write the dirty pages; with ``only``, so many of them, as a kill in the middle would."""
        pages = sorted(self.state.gate.dirty, key=str)
        for page in pages if only is None else pages[:only]:
            if page in self.tables:
                self.older.append((page, self.tables[page]))
            self.tables[page] = self.state.dump_page(page)
            if only is None:
                del self.state.gate.dirty[page]
        if only is None:
            self.kept = self.state.low()

    def crash_and_wake(self, number: int) -> None:
        """Crash, and find that a replaced worker has written one of its older pages after all.

        What it replaced is compacted away; the fold begins where that page was written.
        """
        if self.older:
            page, value = self.older[number % len(self.older)]
            tables = {**self.tables, page: value}
            position = Position(*map(min, zip(self.kept, page_position(value), strict=True)))
            # What was parked then had no effect yet.
            since_ms = position.clock_ms - PARK_MS
            parked = next((a.offset for a in self.outcomes if a.at_ms >= since_ms), 0)
            position = position._replace(outcomes=min(position.outcomes, parked))
            self.state = self.recovered(tables, position)

    def crash(self) -> None:
        self.state = self.recovered(self.tables, self.kept)

    def recovered(self, tables: dict[PageKey, bytes], position: Position) -> State:
        state = self.new_state()
        load(state, tables, position=position)
        decisions = self.decisions[position.decisions :]
        while decisions:
            first = decisions[0]
            batch = [
                f for f in decisions if (f.batch, f.decided_ms) == (first.batch, first.decided_ms)
            ]
            self._fold_outcomes(state, first.outcomes)
            fold_decisions(state, batch)
            decisions = decisions[len(batch) :]
        self._fold_outcomes(state, needed(state).outcomes)
        finish(state)
        self._fold_outcomes(state, len(self.outcomes))
        return state

    def _fold_outcomes(self, state: State, end: int) -> None:
        # All at once, however they were divided when they came.
        settle_all(state, Arrivals.of(self.outcomes[state.gate.position.outcomes : end]))

    def content(self, state: State | None = None) -> dict[PageKey, object]:
        """Return every page of a state without its position; budgets wherever they are placed."""
        state = state or self.state
        pages: list[PageKey] = [("ring", "")] if state._ring_count else []
        pages += [("reservation", n) for n in sorted(state.reservations._rows)]
        pages += [("window", f"{arm} {segment}") for arm, segment in state.windows.keys()]  # noqa: SIM118
        pages += [("arm", arm.arm) for arm in self.catalog.arms]
        dumped = {page: msgspec.msgpack.decode(state.dump_page(page))[-1] for page in pages}
        return {**dumped, ("budget", "all"): state.budgets.content()}
