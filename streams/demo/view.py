"""What is shown while a run goes on: a live page on a terminal, plain lines otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from policy.money import format_usd
from streams.demo.measures import Snapshot
from streams.demo.run import Show
from streams.demo.tell import line_of

_BAR = 24
_STORY_LINES = 9


@contextmanager
def audience(console: Console) -> Iterator[Show]:
    """Give the show that fits the console."""
    if not console.is_terminal:
        yield Show(
            say=lambda text: console.print(text, highlight=False, soft_wrap=True),
            look=lambda s: console.print(line_of(s), highlight=False, soft_wrap=True),
            every_s=3.0,
        )
        return
    told: list[str] = []
    with Live(Text("waiting for the workers"), console=console, auto_refresh=False) as live:

        def say(text: str) -> None:
            told.append(text)
            if len(told) <= 2:
                live.update(Text(text), refresh=True)

        yield Show(say=say, look=lambda s: live.update(page(s), refresh=True), every_s=0.25)


def page(snapshot: Snapshot) -> Group:
    """Return everything on one page."""
    story = "\n".join(snapshot.story[-_STORY_LINES:]) or " "
    return Group(
        _head(snapshot),
        _budgets(snapshot),
        _arms(snapshot),
        Panel(Text(story), title="story", title_align="left"),
    )


def _head(snapshot: Snapshot) -> Panel:
    lines = (
        f"{snapshot.elapsed_s:5.1f} of {snapshot.duration_s:.0f} s   "
        f"{snapshot.sent:,} requests, {snapshot.decided:,} decided, {snapshot.rejected} rejected, "
        f"{snapshot.waiting} waiting (lag)\n"
        f"{snapshot.decisions_per_s:.0f} decisions/s   request to decision p50 "
        f"{snapshot.latency_p50_ms:.0f} ms, p99 {snapshot.latency_p99_ms:.0f} ms   "
        f"{snapshot.in_flight} calls in flight, {format_usd(snapshot.reserved_nanousd)} reserved\n"
        f"ledger: {format_usd(snapshot.ledger.spent_nanousd)} spent in "
        f"{snapshot.ledger.transfers:,} transfers   dead letters {snapshot.dead_letters}, "
        f"{snapshot.dead_letters_expected} bad records sent"
    )
    return Panel(Text(lines), title="Tollway", title_align="left")


def _budgets(snapshot: Snapshot) -> Table:
    table = Table(expand=True, box=None, pad_edge=False)
    for name in ("budget", "spent ▓ reserved ▒ plan │", "spent", "reserved", "cap", "λ"):
        table.add_column(name, justify="left" if name[0] == "b" or "▓" in name else "right")
    for row in snapshot.budgets:
        depth = row.budget.count("/")
        if depth > 1 or row.budget.endswith("/knock"):
            continue
        limit = max(row.limit_nanousd, 1)
        table.add_row(
            "  " * depth + row.budget.rpartition("/")[2],
            bar(row.settled_nanousd / limit, row.reserved_nanousd / limit, row.plan_share),
            format_usd(row.settled_nanousd),
            format_usd(row.reserved_nanousd),
            format_usd(row.limit_nanousd),
            f"{row.dual_price:,.0f}",
        )
    return table


def _arms(snapshot: Snapshot) -> Table:
    table = Table(expand=True, box=None, pad_edge=False)
    for name in ("arm", "traffic", "", "reward", "decisions"):
        table.add_column(name, justify="right" if name in ("reward", "decisions") else "left")
    for row in snapshot.arms:
        table.add_row(
            row.arm,
            bar(row.share, 0.0, None),
            f"{row.share:.0%}",
            "-" if row.reward is None else f"{row.reward:.2f}",
            f"{row.decisions:,}",
        )
    return table


def bar(spent: float, reserved: float, plan: float | None) -> str:
    """Return a bar of shares; the mark is where the plan stands.

    Examples
    --------
    >>> bar(0.25, 0.25, 0.75)
    '▓▓▓▓▓▓▒▒▒▒▒▒······│·····'
    """
    first = min(round(spent * _BAR), _BAR)
    second = min(round((spent + reserved) * _BAR), _BAR)
    cells = ["▓"] * first + ["▒"] * (second - first) + ["·"] * (_BAR - second)
    if plan is not None:
        cells[min(int(plan * _BAR), _BAR - 1)] = "│"
    return "".join(cells)
