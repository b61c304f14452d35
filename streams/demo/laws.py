"""The laws, checked from outside: from the topics themselves and the ledger's rows alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from policy.calendar import window_start_ms
from streams.demo.poison import Poison
from streams.demo.topic_log import Decided, Place, TopicLog

FINDINGS_MAX = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Booked:
    """What the ledger holds of one request, by kind of transfer."""

    request_id: str
    budget: str
    decided_ms: int
    amounts: dict[str, int]

    @property
    def cost_nanousd(self) -> int | None:
        """Return what was booked as the call's cost; None while nothing was."""
        if "settle" not in self.amounts:
            return None
        return self.amounts["settle"] + self.amounts.get("overrun", 0)

    @property
    def gone_nanousd(self) -> int:
        """Return what the budget has lost to this request for good, or until it is trued up."""
        expired = self.amounts.get("expire", 0) - self.amounts.get("adjust", 0)
        return (self.cost_nanousd or 0) + expired


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A budget's limit and window."""

    budget: str
    limit_nanousd: int
    window: str


@dataclass(slots=True, kw_only=True)
class Verdict:
    """What was checked and what was found; zeros everywhere if the laws hold."""

    requests: int = 0
    decisions: int = 0
    copies: int = 0
    rejected: int = 0
    dead_letters: int = 0
    positions: int = 0
    lost: int = 0
    doubled: int = 0
    overspent_nanousd: int = 0
    overrun_nanousd: int = 0
    findings: list[str] = field(default_factory=list)
    broken: int = 0

    @property
    def ok(self) -> bool:
        """Whether every law held."""
        return self.broken == 0

    def find(self, finding: str) -> None:
        """Note a broken law."""
        self.broken += 1
        if len(self.findings) < FINDINGS_MAX:
            self.findings.append(finding)


def check(
    log: TopicLog, booked: Sequence[Booked], limits: Sequence[Limit], *, sent: Iterable[str],
    poison: Sequence[Poison],
) -> Verdict:  # fmt: skip
    """Check every law that topics and ledger can show.

    Parameters
    ----------
    sent : iterable of str
        Ids of the requests that were sent and are good.
    poison : sequence of Poison
        Records that were sent to be refused.
    """
    verdict = Verdict(decisions=len(log.decisions), dead_letters=log.letters.total())
    effective = log.effective()
    refused = _check_letters(verdict, log, poison)
    _check_decisions(verdict, log, effective, refused, set(sent))
    _check_ledger(verdict, log, effective, booked)
    _check_caps(verdict, booked, limits)
    _check_positions(verdict, log, effective)
    return verdict


def _check_letters(verdict: Verdict, log: TopicLog, poison: Sequence[Poison]) -> set[Place]:
    """Each bad record has one dead letter with the expected reason, and no good record has one."""
    expected: set[Place] = set()
    for record in poison:
        place = log.digests.get((record.topic, record.sha256))
        if place is None:
            verdict.find(f"a bad record for {record.topic} is not in its topic")
            continue
        expected.add(place)
        if log.reasons.get(place) != record.reason:
            verdict.find(f"{place}: refused as {log.reasons.get(place)}, not {record.reason}")
    for place, count in log.letters.items():
        if count > 1:
            verdict.find(f"{place} has {count} dead letters")
        if place not in expected:
            verdict.find(f"{place}: a good record was refused as {log.reasons[place]}")
    return expected


def _check_decisions(
    verdict: Verdict, log: TopicLog, effective: dict[str, Decided], refused: set[Place],
    sent: set[str],
) -> None:  # fmt: skip
    """Each request has a decision; copies of one say the same."""
    in_topic = {
        request for request, places in log.requests.items() if any(p not in refused for p in places)
    }
    verdict.requests = len(in_topic | sent)
    for request in in_topic | sent:
        if request not in in_topic or request not in effective:
            verdict.lost += 1
            verdict.find(f"request {request} has no decision")
    for request in effective.keys() - in_topic:
        verdict.find(f"a decision for {request}, which nobody sent")
    for decided in log.decisions:
        first = effective[decided.record.request_id]
        if decided.offset != first.offset:
            verdict.copies += 1
            if decided.record.arm != first.record.arm:
                verdict.doubled += 1
                verdict.find(f"request {decided.record.request_id} was decided anew, otherwise")
    verdict.rejected = sum(d.record.arm is None for d in effective.values())


def _check_ledger(
    verdict: Verdict, log: TopicLog, effective: dict[str, Decided], booked: Sequence[Booked]
) -> None:
    """The ledger holds the cost of each call once, to the nano-dollar."""
    rows = {row.request_id: row for row in booked}
    for request, decided in effective.items():
        row, record = rows.get(request), decided.record
        if record.arm is None:
            continue
        if row is None or row.amounts.get("reserve") != record.reserved_nanousd:
            verdict.lost += 1
            verdict.find(f"request {request}: the ledger has not its reservation")
            continue
        used = log.usage.get(request)
        cost = None if used is None else used.cost_nanousd(record)
        if cost != row.cost_nanousd:
            more = (row.cost_nanousd or 0) > (cost or 0)
            verdict.doubled += more
            verdict.lost += not more
            verdict.find(f"request {request}: cost {cost}, booked {row.cost_nanousd}")
    verdict.overrun_nanousd = sum(row.amounts.get("overrun", 0) for row in booked)


def _check_caps(verdict: Verdict, booked: Sequence[Booked], limits: Sequence[Limit]) -> None:
    """No window of any budget lost more than its limit, overruns and expired money included."""
    for limit in limits:
        gone: dict[int, int] = defaultdict(int)
        for row in booked:
            if f"{row.budget}/".startswith(f"{limit.budget}/"):
                gone[window_start_ms(limit.window, row.decided_ms)] += row.gone_nanousd
        for start, amount in gone.items():
            if amount > limit.limit_nanousd:
                # A team's overspending is its root's too: the largest is what was overspent.
                over = amount - limit.limit_nanousd
                verdict.overspent_nanousd = max(verdict.overspent_nanousd, over)
                verdict.find(f"{limit.budget} spent {amount} of {limit.limit_nanousd} from {start}")


def _check_positions(verdict: Verdict, log: TopicLog, effective: dict[str, Decided]) -> None:
    """What the workers believed of each budget is what the topics say, kills or not.

    Every decision must keep ``reserved + settled`` within the limit. The last one of each window
    is worked out anew: from the decisions before it, and from the outcomes that it had seen.
    """
    last: dict[tuple[str, int], tuple[Decided, int, int]] = {}
    by_budget: dict[str, list[Decided]] = defaultdict(list)
    for decided in effective.values():
        for position in decided.record.budgets:
            verdict.positions += 1
            held = position.reserved_nanousd + position.settled_nanousd
            if decided.record.arm is not None and held > position.limit_nanousd:
                over = held - position.limit_nanousd
                verdict.overspent_nanousd = max(verdict.overspent_nanousd, over)
                verdict.find(f"{position.budget} held {held} of {position.limit_nanousd}")
            by_budget[position.budget].append(decided)
            key = position.budget, position.window_start_ms
            if key not in last or last[key][0].offset < decided.offset:
                last[key] = decided, position.reserved_nanousd, position.settled_nanousd
    for (budget, start_ms), (decided, reserved, settled) in last.items():
        wanted = _position_of(log, by_budget[budget], decided, start_ms)
        if wanted != (reserved, settled):
            verdict.doubled += settled > wanted[1]
            verdict.lost += settled < wanted[1]
            verdict.find(
                f"{budget} from {start_ms}: reserved and settled are {(reserved, settled)}, "
                f"the topics say {wanted}"
            )


def _position_of(
    log: TopicLog, decisions: Sequence[Decided], last: Decided, start_ms: int
) -> tuple[int, int]:
    """Return what is reserved and settled just after ``last``, by the records that it had seen."""
    reserved = settled = 0
    for decided in decisions:
        record = decided.record
        if decided.offset > last.offset or record.decided_ms < start_ms or record.arm is None:
            continue
        used = log.usage.get(record.request_id)
        if used is not None and used.offset < last.record.offsets.outcomes:
            settled += used.cost_nanousd(record)
        elif record.expires_ms < last.record.decided_ms:
            settled += record.reserved_nanousd
        else:
            reserved += record.reserved_nanousd
    return reserved, settled
