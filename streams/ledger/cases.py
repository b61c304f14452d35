"""The requests that a flush touches, from memory or from the ledger's own tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from psycopg import Cursor

from policy.money import Price
from streams.ledger.fold import Booked, Case, Reported, Stage

CASES_MAX = 8_192
"""How many requests of a partition stay in memory; others are read again when needed."""

# The sign before the partition keeps the planner from looking rows up by it. On tables that it has
# no statistics of yet it would, and read every row of the partition for each flush.
_DECISIONS = """
SELECT decision_offset, decision_id, request_id, budget, arm, price_version, price_input,
       price_output, price_cached, reserved_nanousd, decided_ms, expires_ms, fingerprint
FROM decisions WHERE +partition = %s AND decision_id = ANY(string_to_array(%s, ','))
"""
_OUTCOMES = """
SELECT outcome_offset, request_id, decision_id, named_decision_id, at_ms, clock_ms, prompt_tokens,
       completion_tokens, cached_tokens, billed_nanousd, reward
FROM outcomes WHERE +partition = %s AND decision_id = ANY(string_to_array(%s, ','))
ORDER BY outcome_offset
"""
_STAGES = """
SELECT decision_id, kind FROM transfers
WHERE +partition = %s AND decision_id = ANY(string_to_array(%s, ','))
    AND kind IN ('reserve', 'expire', 'settle')
ORDER BY line
"""
_STAGE_AFTER: dict[str, Stage] = {
    "reserve": "reserved",
    "expire": "expired",
    "settle": "settled",
}


class Cases:
    """What is known of the requests of one partition, by decision id; the oldest leave first.

    It mirrors the tables as of the last commit. After a transaction that may not have been
    committed it must be cleared.
    """

    def __init__(self, partition: int) -> None:
        self._partition = partition
        self._known: dict[str, Case] = {}

    def clear(self) -> None:
        """Forget everything; what is needed is read again."""
        self._known.clear()

    def trim(self) -> None:
        """Forget the oldest beyond :data:`CASES_MAX`."""
        # In one go: the first key of a dictionary is looked for past all that were removed.
        for decision_id in list(islice(self._known, max(len(self._known) - CASES_MAX, 0))):
            del self._known[decision_id]

    def get(self, decision_id: str) -> Case | None:
        """Return the request's case, if it is in memory."""
        return self._known.get(decision_id)

    def open(self, decision: Booked) -> Case:
        """Return a new case for an effective decision."""
        case = self._known[decision.decision_id] = Case(decision=decision)
        return case

    def load(
        self,
        cursor: Cursor[Any],
        touched: Sequence[str],
        decided: Sequence[str] = (),
        *,
        careful: bool = True,
    ) -> dict[str, list[Reported]]:
        """Read what is not in memory; return the outcomes that wait for their decision.

        Requests of ``decided`` are about to be decided. Unless ``careful`` is set, those that are
        not in memory are taken for new.
        """
        known = self._known
        wanted = dict.fromkeys(i for i in decided if i not in known)
        if careful:
            wanted |= dict.fromkeys(i for i in touched if i not in known)
            found = self._decided(cursor, wanted)
        else:
            old = [i for i in touched if i not in known and i not in wanted]
            found = self._decided(cursor, dict.fromkeys(old)) if old else {}
        waiting = self._outcomes(cursor, [*wanted, *(i for i in found if i not in wanted)], found)
        if found:
            cursor.execute(_STAGES, [self._partition, ",".join(found)])
            for decision_id, kind in cursor:
                found[decision_id].stage = _STAGE_AFTER[kind]
            known.update(found)
        return waiting

    def _decided(self, cursor: Cursor[Any], wanted: Iterable[str]) -> dict[str, Case]:
        cursor.execute(_DECISIONS, [self._partition, ",".join(wanted)])
        return {row[1]: Case(decision=_decision(row)) for row in cursor}

    def _outcomes(
        self, cursor: Cursor[Any], wanted: Sequence[str], found: Mapping[str, Case]
    ) -> dict[str, list[Reported]]:
        """Let outcomes count for their cases; return those of requests that have none."""
        waiting: dict[str, list[Reported]] = {}
        if not wanted:
            return waiting
        cursor.execute(_OUTCOMES, [self._partition, ",".join(wanted)])
        for row in cursor:
            outcome = _outcome(row)
            case = found.get(outcome.decision_id)
            if case is None:
                waiting.setdefault(outcome.decision_id, []).append(outcome)
            else:
                case.take(outcome)
        return waiting


def _decision(row: tuple[Any, ...]) -> Booked:
    offset, decision_id, request_id, budget, arm, version, *prices = row[:9]
    price = None
    if version is not None:
        price = Price(version=version, input=prices[0], output=prices[1], cached=prices[2])
    return Booked(
        offset=offset,
        decision_id=decision_id,
        request_id=request_id,
        budget=budget,
        arm=arm,
        price=price,
        reserved_nanousd=row[9],
        decided_ms=row[10],
        expires_ms=row[11],
        fingerprint=bytes(row[12]),
    )


def _outcome(row: tuple[Any, ...]) -> Reported:
    return Reported(
        offset=row[0],
        request_id=row[1],
        decision_id=row[2],
        named_decision_id=row[3],
        at_ms=row[4],
        clock_ms=row[5],
        prompt_tokens=row[6],
        completion_tokens=row[7],
        cached_tokens=row[8],
        billed_nanousd=row[9],
        reward=row[10],
    )
