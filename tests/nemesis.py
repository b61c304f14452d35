"""Break everything that can break, under load, and demand that every law held all the same.

    uv run python tests/nemesis.py --seconds 480 --seed 1 --json
    uv run python tests/nemesis.py --seconds 600 --seeds 1 2 3 4 5 6 --json

A load generator keeps its own log; workers and sinks run as processes on a real Kafka and a real
Postgres; faults are drawn from the seed. At the end everything is read and compared with the log.
Exit code 1 unless all of it is right, or if too little happened to prove anything.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    # So that the tests are found wherever this is started.
    sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.nemesis_parts.campaign import run
from tests.nemesis_parts.plan import RATES
from tests.nemesis_parts.report import Result, sum_up

RATE = 125.0
"""Requests a second; with decisions and outcomes about three times as many records."""


def main() -> int:
    """Run one seed or several, one after the other, and tell the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=480.0, help="how long faults are done")
    parser.add_argument("--seed", type=int, default=1, help="which faults, when, and what is sent")
    parser.add_argument("--seeds", type=int, nargs="+", default=[], metavar="SEED",
                        help="several seeds; the JSON is their sum")  # fmt: skip
    parser.add_argument("--rate", type=float, default=RATE, help="requests a second")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--keep", action="store_true", help="keep all logs, not only of failures")
    parser.add_argument("--only", nargs="+", default=[], choices=list(RATES), metavar="KIND",
                        help="faults of these kinds only, to reduce a failure")  # fmt: skip
    given = parser.parse_args()
    began = time.monotonic()
    # That servers are away is no news here.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:6.0f} s  {text}", file=sys.stderr, flush=True)

    results = []
    for seed in given.seeds or [given.seed]:
        result = asyncio.run(
            run(
                seed=seed,
                seconds=given.seconds,
                rate=given.rate,
                keep=given.keep,
                say=say,
                only=given.only,
            )
        )
        results.append(result)
        # Also of a run that is stopped before its last seed.
        print(tell(result), file=sys.stderr if given.json else sys.stdout, flush=True)
    if given.json:
        print(json.dumps(sum_up(results) if given.seeds else results[0].as_dict()))
    return 0 if all(result.ok for result in results) else 1


def tell(result: Result) -> str:
    """Return the result in words."""
    found = result.as_dict()
    lines = [f"seed {result.seed}: {found['faults']['total']} faults in {result.seconds:.0f} s"]
    lines += [f"  {kind:26} {count:5}" for kind, count in result.faults.items()]
    lines.append(f"records {found['records']}: {found['records_by_topic']}")
    for name in ("lost", "doubled", "overspent_nanousd", "in_doubt", "fenced", "overlapping"):
        lines.append(f"{name:20} {found[name]}")
    for felt, times in found["recovery_s"].items():
        lines.append(f"recovery of {felt:9} p50 {times['p50']} s, p95 {times['p95']} s")
    lines += [f"  {finding}" for finding in result.verdict.findings]
    lines += [f"too few {name}" for name in result.too_few]
    lines.append("every law held" if result.ok else f"FAILED; logs in {result.logs or '-'}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
