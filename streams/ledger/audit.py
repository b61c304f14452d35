"""The audits by name: what each answers, and which view of the database answers it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from difflib import get_close_matches
from typing import Any, Literal

import psycopg
from psycopg import sql

from streams.ledger.database import connection_string
from streams.ledger.errors import LedgerError

Value = str | int | float | bool | None


class UnknownAuditError(LedgerError):
    """There is no audit of this name, or it cannot be run as it was asked for."""


class UnknownNameError(LedgerError):
    """The ledger knows no budget, or no price of an arm, of this name; ``close`` are like it."""

    def __init__(self, kind: Literal["arm", "budget"], name: str, close: Sequence[str]) -> None:
        what = "a price of arm" if kind == "arm" else "budget"
        meant = f"; is it {' or '.join(close)}?" if close else ""
        super().__init__(f"the ledger does not know {what} {name!r}{meant}")
        self.name = name
        self.close = close


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """A question about the ledger.

    ``wrong`` is a condition on its rows; the ledger's promises hold if no row fulfils it. Audits
    without one only inform.
    """

    help: str
    source: str
    wrong: str | None = None
    has_budget: bool = True


_NOW_MS = "coalesce(%(now_ms)s, (1000 * extract(epoch FROM now()))::bigint)"

AUDITS: Mapping[str, Audit] = {
    "spend": Audit(
        help="what each budget spent, by arm and day, at every level", source="audit_spend"
    ),
    "balances": Audit(help="the balance of every account", source="audit_balances"),
    "trial-balance": Audit(
        help="do debits equal credits, and is what is reserved what is open",
        source="audit_trial_balance",
        wrong="sum_nanousd <> 0 OR wrong_sides <> 0 OR unexplained_reserved_nanousd <> 0",
    ),
    "utilisation": Audit(
        help="how much of its limit each budget has used, and when it will be exhausted",
        source=f"audit_utilisation({_NOW_MS})",
    ),
    "caps": Audit(
        help="was a budget ever over its limit, by how much, because of which request",
        source="audit_caps",
        wrong="true",
    ),
    "overruns": Audit(help="calls that cost more than was reserved", source="audit_overruns"),
    "reservations": Audit(
        help="reservations that are open, due (expiry not booked yet) or expired",
        source="audit_reservations",
    ),
    "rederived": Audit(
        help="amounts that differ from usage times the pinned price",
        source="audit_rederived",
        wrong="true",
    ),
    "savings": Audit(
        help="what the same tokens would have cost with --arm",
        source="audit_savings(%(arm)s::text)",
    ),
    "unmatched": Audit(
        help="outcomes that count for no decision", source="audit_unmatched", has_budget=False
    ),
    "conflicts": Audit(
        help="records that contradict an earlier one", source="audit_conflicts", has_budget=False
    ),
    "dead-letters": Audit(
        help="records that could not be booked", source="dead_letters", has_budget=False
    ),
    "cursors": Audit(
        help="where the sink stands, copies that it ignored, partitions that stand still",
        source="audit_cursors",
        wrong="missing_lines <> 0 OR halted IS NOT NULL",
        has_budget=False,
    ),
}

_KNOWN: Mapping[Literal["arm", "budget"], str] = {
    "arm": "SELECT DISTINCT arm FROM prices",
    # Those that the catalog declared, those that a request named, and the levels above them.
    "budget": """
        SELECT DISTINCT budget_levels(budget)
        FROM (SELECT budget FROM budget_limits UNION SELECT budget FROM decisions) AS named
    """,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The rows of an audit; ``wrong`` counts those that break a promise."""

    name: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Value]]
    wrong: int

    def as_dict(self) -> dict[str, Any]:
        """Return the answer as JSON takes it."""
        rows = [dict(zip(self.columns, row, strict=True)) for row in self.rows]
        return {"audit": self.name, "ok": self.wrong == 0, "rows": rows}


def run_audit(
    database_url: str,
    name: str,
    *,
    arm: str | None = None,
    budget: str | None = None,
    now_ms: int | None = None,
) -> Answer:
    """Run an audit; ``budget`` leaves only its rows, ``now_ms`` stands for the present.

    Raises
    ------
    UnknownAuditError
        If there is no such audit, it needs an arm, or it has no use for the arm or the budget.
    UnknownNameError
        If there is no answer because the ledger knows no such arm or budget.
    """
    audit = AUDITS.get(name)
    if audit is None:
        raise UnknownAuditError(f"no audit {name!r}; there are {', '.join(AUDITS)}")
    compares = "%(arm)s" in audit.source
    if compares and arm is None:
        raise UnknownAuditError(f"audit {name} needs an arm to compare with")
    if arm is not None and not compares:
        raise UnknownAuditError(f"audit {name} compares with no arm")
    if budget is not None and not audit.has_budget:
        raise UnknownAuditError(f"audit {name} is not by budget")
    statement = sql.SQL("SELECT *, {} FROM {} AS answers {}").format(
        sql.SQL(audit.wrong or "false"),
        sql.SQL(audit.source),
        sql.SQL("WHERE budget = %(budget)s" if budget is not None else ""),
    )
    parameters = {"arm": arm, "budget": budget, "now_ms": now_ms}
    with psycopg.connect(connection_string(database_url)) as connection:
        cursor = connection.execute(statement, parameters)
        assert cursor.description is not None
        columns = [column.name for column in cursor.description[:-1]]
        found = cursor.fetchall()
        if not found:
            _check_name(connection, "arm", arm)
            _check_name(connection, "budget", budget)
    return Answer(
        name=name,
        columns=columns,
        rows=[[_plain(value) for value in row[:-1]] for row in found],
        wrong=sum(bool(row[-1]) for row in found),
    )


def _check_name(
    connection: psycopg.Connection[Any], kind: Literal["arm", "budget"], name: str | None
) -> None:
    if name is None:
        return
    known = [row[0] for row in connection.execute(_KNOWN[kind].encode()).fetchall()]
    if name not in known:
        raise UnknownNameError(kind, name, get_close_matches(name, known))


def count_wrong(database: psycopg.Cursor[Any], name: str) -> int:
    """Return how many rows of an audit break a promise, as this cursor's transaction sees them."""
    audit = AUDITS[name]
    statement = sql.SQL("SELECT count(*) FROM {} AS answers WHERE {}").format(
        sql.SQL(audit.source), sql.SQL(audit.wrong or "false")
    )
    return int(database.execute(statement).fetchall()[0][0])


def _plain(value: object) -> Value:
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, datetime | date):
        return value.isoformat()
    assert value is None or isinstance(value, str | int | float)
    return value
