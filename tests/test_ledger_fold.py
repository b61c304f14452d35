"""The ledger's pure parts: calendar, bookings, and reading records without gaps."""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from aiokafka import TopicPartition
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.acceptance import PARK_MS, split_cost
from policy.calendar import TOTAL_END_MS, window_end_ms, window_start_ms
from streams.ledger.cases import Cases
from streams.ledger.chain import NOTHING, Link
from streams.ledger.fold import Case, Reported
from streams.ledger.inbox import PATIENCE_READS, Inbox
from streams.ledger.reading import (
    booked,
    check_partition,
    read_decision,
    read_outcome,
    reported,
    request_of,
)
from streams.ledger.reference import (
    SeenDecision,
    SeenOutcome,
    expected_books,
    home_of,
    identity_of,
)
from streams.ledger.unit import Unit
from streams.records import (
    BadRecordError,
    Decision,
    Outcome,
    PriceTag,
    Seen,
    Usage,
    decision_id,
    encode,
)

WINDOWS = st.sampled_from(["hour", "day", "week", "month", "total", "1s", "90s", "86400s"])
INSTANTS = st.integers(0, TOTAL_END_MS - 1)


@settings(deadline=None)
@given(window=WINDOWS, at_ms=INSTANTS)
def test_windows_hold_their_instant_and_tile_time(window: str, at_ms: int) -> None:
    start, end = window_start_ms(window, at_ms), window_end_ms(window, at_ms)
    assert start <= at_ms < end
    if start >= 0:
        assert window_start_ms(window, start) == start
    assert window_start_ms(window, end - 1) == start
    if window != "total":
        assert window_start_ms(window, end) == end


@settings(deadline=None)
@given(at_ms=INSTANTS)
def test_calendar_windows_are_those_of_datetime(at_ms: int) -> None:
    at = datetime.fromtimestamp(at_ms // 1_000, UTC)
    day = at.replace(hour=0, minute=0, second=0)
    expected = {"hour": at.replace(minute=0, second=0), "day": day, "month": day.replace(day=1)}
    for window, start in expected.items():
        assert window_start_ms(window, at_ms) == int(start.timestamp()) * 1_000
    if window_start_ms("week", at_ms) >= 0:
        week = datetime.fromtimestamp(window_start_ms("week", at_ms) // 1_000, UTC)
        assert (week.weekday(), week.hour, week.minute) == (0, 0, 0)


@pytest.mark.parametrize("window", ["", "s", "0s", "-1s", "fortnight", "1.5s", "²s"])
def test_unknown_windows_are_refused(window: str) -> None:
    with pytest.raises(ValueError, match="unknown window"):
        window_start_ms(window, 0)


@settings(deadline=None)
@given(reserved=st.integers(0, 10**18), cost=st.integers(0, 10**18))
def test_a_split_loses_nothing(reserved: int, cost: int) -> None:
    split = split_cost(reserved_nanousd=reserved, cost_nanousd=cost)
    assert split.settled_nanousd + split.released_nanousd == reserved
    assert split.settled_nanousd + split.overrun_nanousd == cost
    assert split.released_nanousd == 0 or split.overrun_nanousd == 0


NAMES = [("acme", "r1"), ("beta", "r1"), ("acme", "r2")]
"""Root and id of the requests that the properties are about: two share their id."""


def decision(request: int, *, variant: int = 0, decided_ms: int = 0, arm: bool = True) -> Decision:
    root, request_id = NAMES[request]
    return Decision(
        decision_id=decision_id(root, request_id),
        request_id=request_id,
        budget=f"{root}/team/key{request % 2}",
        decided_ms=decided_ms,
        offsets=Seen(0, 0, 0, 0, 0),
        arm="small@x" if arm else None,
        rejected=None if arm else "budget",
        reserved_nanousd=500 + variant if arm else 0,
        expires_ms=decided_ms + 100_000,
        price=PriceTag(1, 1_000, 2_000, 500) if arm else None,
    )


REQUESTS = st.integers(0, 2)
DECISIONS = st.builds(
    decision,
    REQUESTS,
    variant=st.integers(0, 1),
    decided_ms=st.sampled_from([0, 50_000, 90_000, 150_000]),
    arm=st.booleans() | st.just(True),
)
KEYS = st.sampled_from([b"acme", b"beta", b"\xff", None])
OUTCOMES = st.builds(
    Outcome,
    request_id=REQUESTS.map(lambda i: NAMES[i][1]),
    decision_id=st.none() | REQUESTS.map(lambda i: decision_id(*NAMES[i])),
    usage=st.none() | st.builds(Usage, st.integers(100, 101), st.integers(10, 400), st.just(50)),
    cost_nanousd=st.none() | st.sampled_from([0, 400, 900]),
    reward=st.none() | st.sampled_from([0.0, 0.5]),
)
TIMES = st.integers(0, 300_000)


class Model:
    """Books records in any interleaving of the two topics, as the sink's transactions do."""

    def __init__(self) -> None:
        self.cases: dict[str, Case] = {}
        self.waiting: dict[str, list[Reported]] = defaultdict(list)
        self.amounts: dict[str, dict[str, int]] = defaultdict(dict)
        self.balances: dict[str, int] = defaultdict(int)
        self.conflicts: set[tuple[str, int, str]] = set()
        self.decision_copies = self.outcome_copies = 0
        self.clock_ms = self.swept_ms = 0

    def decide(self, offset: int, value: bytes) -> None:
        record, mark = read_decision(value)
        known = self.cases.get(record.decision_id)
        if known is not None:
            same = known.decision.fingerprint == mark
            self.decision_copies += same
            self.conflicts |= set() if same else {("decision", offset, "decision")}
            return
        case = Case(decision=booked(record, mark, offset=offset))
        self.cases[record.decision_id] = case
        for facts in self.waiting[record.decision_id]:
            self._take(case, facts)
        self._post(case)

    def report(self, offset: int, at_ms: int, key: bytes | None, outcome: Outcome) -> SeenOutcome:
        self.clock_ms = max(self.clock_ms, at_ms)
        facts = reported(
            outcome,
            decision_id=request_of(key, outcome.request_id),
            offset=offset,
            at_ms=at_ms,
            clock_ms=self.clock_ms,
        )
        self.waiting[facts.decision_id].append(facts)
        case = self.cases.get(facts.decision_id)
        if case is not None:
            self._take(case, facts)
            self._post(case)
        identity = identity_of(key or b"", outcome.request_id)
        return SeenOutcome(offset, identity, at_ms, self.clock_ms, outcome)

    def sweep(self) -> None:
        self.swept_ms = self.clock_ms
        for case in self.cases.values():
            self._post(case)

    def _take(self, case: Case, facts: Reported) -> None:
        for part, reason, _ in case.take(facts):
            if reason:
                self.conflicts.add(("outcome", facts.offset, part))
            else:
                self.outcome_copies += 1

    def _post(self, case: Case) -> None:
        for posting in case.due(self.swept_ms):
            kinds = self.amounts[case.decision.decision_id]
            assert posting.kind not in kinds
            kinds[posting.kind] = posting.amount_nanousd
            self.balances[posting.debit] += posting.amount_nanousd
            self.balances[posting.credit] -= posting.amount_nanousd


@settings(deadline=None)
@given(
    decisions=st.lists(DECISIONS, max_size=6),
    outcomes=st.lists(st.tuples(TIMES, KEYS, OUTCOMES), max_size=10),
    steps=st.lists(st.sampled_from("dos"), max_size=24),
)
def test_any_interleaving_books_what_the_reference_says(
    decisions: list[Decision],
    outcomes: list[tuple[int, bytes | None, Outcome]],
    steps: list[str],
) -> None:
    model, seen_outcomes = Model(), []
    todo = [encode(d) for d in decisions]
    late = iter(enumerate(outcomes))
    early = iter(enumerate(todo))
    for step in [*steps, *"d" * len(decisions), *"o" * len(outcomes)]:
        if step == "d" and (found := next(early, None)) is not None:
            model.decide(*found)
        if step == "o" and (report := next(late, None)) is not None:
            offset, rest = report
            seen_outcomes.append(model.report(offset, *rest))
        if step == "s":
            model.sweep()
    model.sweep()
    seen_decisions = []
    for offset, (value, record) in enumerate(zip(todo, decisions, strict=True)):
        identity = identity_of(record.budget.split("/")[0].encode(), record.request_id)
        seen_decisions.append(SeenDecision(offset, identity, value, record))
    books = expected_books(seen_decisions, seen_outcomes, swept_ms=model.swept_ms)
    assert {k: v for k, v in model.amounts.items() if v} == books.amounts
    assert model.conflicts == books.conflicts
    assert (model.decision_copies, model.outcome_copies) == (
        books.decision_copies,
        books.outcome_copies,
    )
    # Conservation, and every account on its side.
    assert sum(model.balances.values()) == 0
    for account, balance in model.balances.items():
        assert balance <= 0 if account.startswith("available:") else balance >= 0
    spent = sum(v for k, v in model.balances.items() if k.startswith(("spent:", "overrun:")))
    assert spent == sum(
        kinds.get("settle", 0) + kinds.get("overrun", 0) for kinds in books.amounts.values()
    )


def _take(decided: Decision, *reports: Outcome, at_ms: int = 1) -> list[str]:
    case = Case(decision=booked(decided, b"", offset=0))
    return [
        copy.reason
        for offset, report in enumerate(reports)
        for copy in case.take(
            reported(
                report,
                decision_id=decided.decision_id,
                offset=offset,
                at_ms=at_ms,
                clock_ms=at_ms,
            )
        )
    ]


@pytest.mark.parametrize(
    ("decided", "reports", "reasons"),
    [
        pytest.param(
            decision(0),
            [Outcome(request_id="r1", reward=0.5), Outcome(request_id="r1", cost_nanousd=5)],
            [],
            id="parts-may-come-apart",
        ),
        pytest.param(
            decision(0),
            [Outcome(request_id="r1", cost_nanousd=5), Outcome(request_id="r1", cost_nanousd=5)],
            [""],
            id="equal-copy",
        ),
        pytest.param(
            decision(0),
            [Outcome(request_id="r1", cost_nanousd=5), Outcome(request_id="r1", cost_nanousd=6)],
            ["other_usage"],
            id="contradiction",
        ),
        pytest.param(
            decision(0),
            [Outcome(request_id="r1", decision_id=decision_id("beta", "r1"), cost_nanousd=5)],
            ["other_decision"],
            id="outcome-of-another-decision",
        ),
        pytest.param(
            decision(0, decided_ms=PARK_MS + 2),
            [Outcome(request_id="r1", cost_nanousd=5)],
            ["too_early"],
            id="waited-too-long",
        ),
        pytest.param(
            decision(0, arm=False),
            [Outcome(request_id="r1", cost_nanousd=5)],
            ["rejected"],
            id="outcome-of-a-rejection",
        ),
    ],
)
def test_outcomes_that_have_no_effect_say_why(
    decided: Decision, reports: list[Outcome], reasons: list[str]
) -> None:
    assert _take(decided, *reports) == reasons


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"decision_id": "x\0"}, "range"),
        ({"decision_id": "x"}, "wrong_decision_id"),
        ({"decision_id": decision_id("acme", "r1").upper()}, "wrong_decision_id"),
        ({"budget": "beta/team/key1"}, "wrong_decision_id"),
        ({"request_id": "r2"}, "wrong_decision_id"),
        ({"request_id": ""}, "range"),
        ({"reserved_nanousd": 2**63}, "range"),
        ({"decided_ms": -1}, "range"),
        ({"rejected": "budget"}, "inconsistent"),
        ({"arm": None}, "inconsistent"),
        ({"price": None}, "inconsistent"),
        ({"price": PriceTag(1, 0, 0)}, "inconsistent"),
        ({"policy": "x" * 401}, "range"),
    ],
)
def test_decisions_that_cannot_be_booked_are_refused(
    change: dict[str, object], reason: str
) -> None:
    record = decision(0)
    for name, value in change.items():
        setattr(record, name, value)
    with pytest.raises(BadRecordError) as caught:
        read_decision(encode(record))
    assert caught.value.reason == reason


@settings(deadline=None)
@given(key=st.binary(max_size=12), request_id=st.text("ab/é", max_size=4), count=st.integers(1, 64))
def test_the_reference_finds_request_and_partition_by_itself(
    key: bytes, request_id: str, count: int
) -> None:
    assert identity_of(key, request_id) == request_of(key, request_id)
    for number in range(count):
        if number == home_of(key, count):
            check_partition(key, number, count)
            continue
        with pytest.raises(BadRecordError) as caught:
            check_partition(key, number, count)
        assert caught.value.reason == "wrong_partition"


def test_outcomes_are_made_storable_or_refused() -> None:
    assert (
        read_outcome(b'{"request_id":"r1","error":"a\\u0000b"}').error
        == "a\N{REPLACEMENT CHARACTER}b"
    )
    with pytest.raises(BadRecordError, match="cached"):
        read_outcome(encode(Outcome(request_id="r1", usage=Usage(1, 1, 2))))
    with pytest.raises(BadRecordError):
        read_outcome(b'{"request_id":"r1","error":"\\ud800 is half a character"}')


def _inbox(next_decision: int = 0) -> tuple[Inbox, TopicPartition]:
    unit = Unit(
        partition=0,
        partitions=1,
        epoch=1,
        next_decision=next_decision,
        next_outcome=0,
        cases=Cases(0),
        link=Link(0, 0, 1, next_decision, 0, 0, datetime.now(UTC), *(NOTHING,) * 4),
    )
    inbox = Inbox(unit, ("decisions", "outcomes"))
    return inbox, inbox.topic_partitions[0]


def _messages(*offsets: int) -> list[SimpleNamespace]:
    return [SimpleNamespace(offset=i, timestamp=i, value=b"", key=None) for i in offsets]


def test_an_inbox_takes_what_follows_and_drops_what_is_old() -> None:
    inbox, tp = _inbox(next_decision=3)
    assert inbox.put(tp, _messages(1, 2, 3, 4)) is None
    assert [raw.offset for raw in inbox.batch().decisions] == [3, 4]
    assert inbox.put(tp, _messages(0, 1)) == 5


def test_an_inbox_believes_a_gap_only_when_it_is_there_again() -> None:
    inbox, tp = _inbox()
    assert inbox.put(tp, _messages(0, 2, 3)) == 1
    assert inbox.size == 1
    inbox.miss(tp, 1)
    assert inbox.put(tp, _messages(2, 3)) == 1
    inbox.miss(tp, 1)
    assert inbox.put(tp, _messages(2, 3)) is None
    assert [raw.offset for raw in inbox.batch().decisions] == [0, 2, 3]


def test_behind_a_gap_only_the_record_is_taken_that_proved_it() -> None:
    inbox, tp = _inbox()
    for _ in range(2):
        assert inbox.put(tp, _messages(0, 2)) == 1
        inbox.miss(tp, 1)
    # A reader that has gone astray once more: the record at 2 must not be passed over.
    assert inbox.put(tp, _messages(3, 4)) == 1
    inbox.miss(tp, 1)
    assert inbox.put(tp, _messages(3, 4)) == 1
    inbox.miss(tp, 1)
    assert inbox.put(tp, _messages(0, 2)) == 1
    assert [raw.offset for raw in inbox.batch().decisions] == [0]


def test_an_inbox_lets_go_of_what_is_booked() -> None:
    inbox, tp = _inbox()
    inbox.put(tp, _messages(0, 1, 2))
    inbox.unit.next_decision = 2
    inbox.settle()
    assert [raw.offset for raw in inbox.batch().decisions] == [2]
    inbox.unit.next_decision = 3
    inbox.settle()
    assert inbox.size == 0


def _outcomes_at(inbox: Inbox, **how: float) -> list[int]:
    return [raw.offset for raw in inbox.batch(**how).outcomes]


def test_outcomes_wait_until_all_decisions_before_them_are_in_hand() -> None:
    inbox, decisions = _inbox()
    outcomes = inbox.topic_partitions[1]
    inbox.put(outcomes, _messages(0, 1, 2), now_s=10.0)
    assert _outcomes_at(inbox, now_s=10.0) == []
    assert inbox.ask() == [decisions]
    assert _inbox()[0].ask() == [decisions, outcomes]
    assert _inbox()[0].ask(is_full=True) == [decisions]
    # The timestamps are the offsets here: another decision may come at the newest one's time.
    inbox.put(decisions, _messages(0, 1), now_s=10.0)
    assert _outcomes_at(inbox, now_s=10.0) == [0]
    assert _outcomes_at(inbox) == [0, 1, 2]


def test_outcomes_do_not_wait_for_decisions_that_do_not_come() -> None:
    inbox, decisions = _inbox()
    inbox.put(inbox.topic_partitions[1], _messages(0), now_s=10.0)
    for _ in range(PATIENCE_READS):
        assert _outcomes_at(inbox, now_s=11.0) == []
        inbox.ask()
    assert _outcomes_at(inbox, now_s=10.1) == []
    assert _outcomes_at(inbox, now_s=11.0) == [0]
    inbox.put(decisions, _messages(0), now_s=11.0)
    # It was given before and may be booked: an attempt in doubt is made again with no less.
    assert _outcomes_at(inbox, now_s=11.0) == [0]
