"""Who spends in the demo: four roots with teams and keys below, and what each may spend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from streams.records import BudgetEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class Payer:
    """A key that requests name; ``share`` is its part of all requests."""

    budget: str
    share: float

    @property
    def root(self) -> str:
        """Return the root, the key of its records."""
        return self.budget.partition("/")[0]


PAYERS = (
    Payer(budget="acme/search/live", share=0.16),
    Payer(budget="acme/search/lab", share=0.06),
    Payer(budget="acme/support/bot", share=0.12),
    Payer(budget="borealis/papers/reader", share=0.14),
    Payer(budget="borealis/papers/judge", share=0.06),
    Payer(budget="globex/etl/nightly", share=0.12),
    Payer(budget="globex/etl/backfill", share=0.06),
    Payer(budget="globex/agents/coder", share=0.08),
    Payer(budget="initech/labels/batch", share=0.14),
    Payer(budget="initech/evals/weekly", share=0.06),
)
BURST_ROOT = "globex"
TOTAL_ROOTS = frozenset({"borealis"})
"""Roots whose limit is for the whole run; the others have one for each window."""
TEAM_SHARE, KEY_SHARE = 1.25, 1.6
"""Teams and keys may use more than their even part of the root, as organisations grant it."""
KNOCK = "knock"
"""Below every root a key without money, asked until its partition's worker answers."""


def roots() -> tuple[str, ...]:
    """Return the roots in order."""
    return tuple(dict.fromkeys(payer.root for payer in PAYERS))


def share_of(path: str) -> float:
    """Return the part of all requests that a budget path sees.

    Examples
    --------
    >>> round(share_of("acme"), 2), round(share_of("acme/search"), 2)
    (0.34, 0.22)
    """
    return sum(p.share for p in PAYERS if f"{p.budget}/".startswith(f"{path}/"))


def budget_entries(
    *, run_nanousd: int, requests: int, windows: int, window_s: int
) -> Sequence[BudgetEntry]:
    """Return the whole tree; ``run_nanousd`` is what all roots may spend in all windows.

    Roots and teams with windows are paced by the clock, a root with a total by the mean cost of
    a request; keys have a hard cap only.
    """
    paths = dict.fromkeys(
        "/".join(payer.budget.split("/")[:depth]) for depth in (1, 2, 3) for payer in PAYERS
    )
    entries = []
    for path in paths:
        root, depth = path.partition("/")[0], path.count("/")
        whole = root in TOTAL_ROOTS
        grant = (1.0, TEAM_SHARE, KEY_SHARE)[depth]
        amount = min(share_of(path) * grant, share_of(root)) * run_nanousd
        entries.append(
            BudgetEntry(
                budget=path,
                limit_nanousd=round(amount if whole else amount / windows),
                window="total" if whole else f"{window_s}s",
                per_request_nanousd=round(run_nanousd / requests) if whole and not depth else None,
                pacing="none" if depth == 2 or (whole and depth) else "even",
            )
        )
    return entries


def knock_entries() -> Sequence[BudgetEntry]:
    """Return the keys that are asked until the workers answer, and the roots without money.

    A root is declared before anything is decided below it, so that the path of a key never grows.
    """
    return [
        entry
        for root in roots()
        for entry in (
            BudgetEntry(budget=root, limit_nanousd=0, window="1s", pacing="none"),
            BudgetEntry(budget=f"{root}/{KNOCK}", limit_nanousd=0, window="total", pacing="none"),
        )
    ]
