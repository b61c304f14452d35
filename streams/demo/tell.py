"""What is printed at the end, and the plain lines of a run without a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from rich.console import Console
from rich.table import Table

from policy.money import format_usd
from streams.demo.measures import Snapshot
from streams.demo.result import Result


def line_of(snapshot: Snapshot) -> str:
    """Return a snapshot as one line."""
    roots = " ".join(
        f"{row.budget} {_percent(row.settled_nanousd + row.reserved_nanousd, row.limit_nanousd)}"
        f"/{row.plan_share:.0%} λ{row.dual_price:,.0f}"
        for row in snapshot.budgets
        if "/" not in row.budget
    )
    arm = max(snapshot.arms, key=lambda row: row.share)
    reward = "-" if arm.reward is None else f"{arm.reward:.2f}"
    return (
        f"{snapshot.elapsed_s:5.1f} s  {snapshot.decided:,} decided, {snapshot.waiting} waiting, "
        f"{snapshot.in_flight} calls in flight, {snapshot.decisions_per_s:.0f}/s, "
        f"p50 {snapshot.latency_p50_ms:.0f} ms, p99 {snapshot.latency_p99_ms:.0f} ms | "
        f"held/plan: {roots} | {arm.arm} {arm.share:.0%} of traffic, reward {reward} | "
        f"ledger {format_usd(snapshot.ledger.spent_nanousd)} | "
        f"dead letters {snapshot.dead_letters}/{snapshot.dead_letters_expected}"
    )


def print_result(console: Console, result: Result) -> None:
    """Print the tables and the verdict."""
    console.print()
    console.print(_spend_table(result))
    console.print(_reward_table(result))
    console.print(_story_table(result))
    speed = result.speed
    console.print(
        f"{speed.decisions_per_s:.0f} decisions/s as they came; request to decision p50 "
        f"{speed.p50_ms:.0f} ms, p99 {speed.p99_ms:.0f} ms (p50 {speed.calm_p50_ms:.0f} ms, p99 "
        f"{speed.calm_p99_ms:.0f} ms but for those sent while a worker was dead); calls in flight "
        f"{speed.in_flight_p50:.0f} (median), {speed.in_flight_p10:.0f} (p10), "
        f"{speed.in_flight_max:.0f} (most)",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    for text in verdict_lines(result):
        console.print(text, highlight=False, soft_wrap=True)


def verdict_lines(result: Result) -> Sequence[str]:
    """Return what the checks found, the last line with the three numbers that must be zero."""
    verdict, report = result.verdict, result.report
    lines = [
        f"topics: {verdict.requests:,} requests, {verdict.decisions:,} decisions "
        f"({verdict.rejected} rejections, {verdict.copies} copies), {verdict.dead_letters} dead "
        f"letters, of {result.last.dead_letters_expected} bad records; {verdict.positions:,} "
        "positions of budgets within their limits",
        f"ledger: {report.transfers:,} transfers in {report.partitions} partitions, "
        f"{format_usd(report.spent_nanousd)} spent, overrun "
        f"{format_usd(report.overrun_nanousd) if report.overrun_nanousd else '$0'}; "
        + ("it is what the topics say" if report.ok else f"{report.mismatches} differ"),
    ]
    lines += [f"  broken: {finding}" for finding in (*verdict.findings, *report.findings)]
    lines += [f"  audit {name}: {n} rows" for name, n in result.audits_wrong.items() if n]
    over = format_usd(verdict.overspent_nanousd) if verdict.overspent_nanousd else "$0"
    lines.append(f"lost {verdict.lost}, doubled {verdict.doubled}, overspent {over}")
    return lines


def next_commands(home: Path, example: str, *, own: bool, kept: bool) -> Sequence[str]:
    """Return what to try next; ``own`` tells that the servers are the demo's."""
    prefix = f"TOLLWAY_HOME={home} " if own else ""
    commands = [
        "audit spend",
        "audit caps",
        "audit verify",
        f"explain {example}",
        "tail dead-letters -n 5",
    ]
    if own and not kept:
        commands = ["up", *commands, "down"]
    return [f"{prefix}uv run tollway {command}" for command in commands]


def _spend_table(result: Result) -> Table:
    table = Table(title="Spend against caps, window by window", title_justify="left")
    for name in ("budget", "window", "cap"):
        table.add_column(name, justify="right" if name == "cap" else "left")
    rows = {budget: list(group) for budget, group in groupby(result.spends, key=lambda s: s.budget)}
    width = max((len(group) for group in rows.values()), default=0)
    for number in range(width):
        table.add_column(f"{number + 1}", justify="right")
    for budget, group in rows.items():
        cells = [
            f"{format_usd(s.gone_nanousd)} {_percent(s.gone_nanousd, s.limit_nanousd)}"
            for s in group
        ]
        table.add_row(budget, group[0].window, format_usd(group[0].limit_nanousd), *cells)
    return table


def _reward_table(result: Result) -> Table:
    table = Table(title="Mean reward of the same requests", title_justify="left")
    table.add_column("router")
    table.add_column("reward", justify="right")
    table.add_column("spent", justify="right")
    table.add_column("")
    for line in result.lines:
        style = "bold" if line.name == "Tollway" else ""
        table.add_row(
            line.name, f"{line.reward:.3f}", f"${line.spent_usd:.4f}", line.note, style=style
        )
    return table


def _story_table(result: Result) -> Table:
    table = Table(title="What the story changed", title_justify="left")
    for name in ("event", "", "before", "after"):
        table.add_column(name)
    for effect in result.effects:
        table.add_row(effect.event, effect.what, effect.before, effect.after)
    return table


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "-"
