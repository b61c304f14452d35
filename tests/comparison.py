"""The nemesis, shortened, against Tollway and three other designs: the same load, the same seeds.

    uv run python tests/comparison.py --seconds 90 --seeds 1 2 3 --json

The stand-ins are small and honest: budgets on stock Faust with either of its guarantees, and a
gateway's check-call-add with a queue of spend that is drained and then committed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
import time
from dataclasses import asdict

from tests.comparison_parts.contest import DESIGNS, contest
from tests.comparison_parts.judge import Judgement

RATE = 60.0


def main() -> int:
    """Run every design with every seed and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=90.0, help="how long faults are done")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rate", type=float, default=RATE, help="requests a second")
    parser.add_argument("--design", action="append", choices=[d.name for d in DESIGNS])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args()
    began = time.monotonic()
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    totals: dict[str, Judgement] = {}
    for design in DESIGNS:
        if given.design and design.name not in given.design:
            continue
        for seed in given.seeds:

            def say(text: str, name: str = f"{design.name}, seed {seed}") -> None:
                at_s = time.monotonic() - began
                print(f"{at_s:6.0f} s  {name}: {text}", file=sys.stderr, flush=True)

            one = asyncio.run(
                contest(design, seed=seed, seconds=given.seconds, rate=given.rate, say=say)
            )
            say(str(asdict(one)))
            known = totals.setdefault(design.name, Judgement())
            for name, value in asdict(one).items():
                setattr(known, name, getattr(known, name) + value)
    print(json.dumps({n: as_dict(j) for n, j in totals.items()}) if given.json else tell(totals))
    tollway = totals.get("tollway", Judgement())
    return 1 if tollway.lost or tollway.doubled or tollway.overspent_nanousd else 0


def as_dict(judged: Judgement) -> dict[str, int]:
    """Return a judgement as JSON takes it."""
    return {**asdict(judged), "lost": judged.lost, "doubled": judged.doubled}


def tell(totals: dict[str, Judgement]) -> str:
    """Return the table, as it stands in the README."""
    lines = [
        "| design | requests | faults | lost | doubled | overspent |",
        "|---|---|---|---|---|---|",
    ]
    for name, judged in totals.items():
        share = judged.overspent_nanousd / max(judged.limit_nanousd, 1)
        lines.append(
            f"| {name} | {judged.requests} | {judged.faults} "
            f"| {judged.lost_requests} requests, {judged.lost_spend} costs "
            f"| {judged.doubled_calls} calls, {judged.doubled_spend} costs "
            f"| {share:.1%} of the limits |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
