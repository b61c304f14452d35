"""Run simulation seeds: ``uv run python tests/simulate.py --seeds 0-1000 --json``."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # Before numpy is imported, and so that the tests are found wherever this is started.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.simulation.run import run_seed

EVIDENCE = ("fenced", "in_doubt", "fenced_sinks")
"""Workers and sinks that were shut out, commits that were found durable after all."""
ENOUGH = 100
"""From so many seeds on each of that must have happened."""


@dataclass(slots=True)
class Summary:
    """What many seeds did; ``failed`` are those that broke a law, with what they found."""

    seeds: int = 0
    failed: dict[int, str] = field(default_factory=dict)
    faults: Counter[str] = field(default_factory=Counter)
    records: int = 0
    fenced: int = 0
    in_doubt: int = 0
    fenced_sinks: int = 0
    transfers: int = 0
    simulated_s: float = 0.0
    took_s: float = 0.0

    @property
    def missing(self) -> list[str]:
        """Return what should have happened in so many seeds, and did not."""
        if self.seeds < ENOUGH:
            return []
        return [name for name in EVIDENCE if not getattr(self, name)]

    @property
    def ok(self) -> bool:
        """Return whether every law held in every seed, and enough happened to prove it."""
        return not self.failed and not self.missing


def run_one(seed: int) -> dict[str, Any]:
    """Return what one seed did, or under ``failed`` what it found."""
    logging.disable(logging.CRITICAL)
    try:
        found = run_seed(seed)
        return {**asdict(found), "faults": dict(found.faults)}
    except Exception as exc:  # noqa: BLE001
        place = traceback.extract_tb(exc.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        return {"seed": seed, "failed": f"{type(exc).__name__} at {where}: {exc}"[:1_000]}


def run_seeds(seeds: Iterable[int], *, jobs: int) -> Summary:
    """Run seeds in so many processes."""
    begun, summary = time.monotonic(), Summary()
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for found in pool.map(run_one, seeds, chunksize=10):
            summary.seeds += 1
            if "failed" in found:
                summary.failed[found["seed"]] = found["failed"]
                continue
            summary.faults.update(found["faults"])
            for name in (*EVIDENCE, "records", "transfers", "simulated_s"):
                setattr(summary, name, getattr(summary, name) + found[name])
    summary.took_s = round(time.monotonic() - begun, 1)
    return summary


def main() -> int:
    """Run the seeds that the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="0-100", help="one seed, or from-to without the last")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    first, _, last = arguments.seeds.partition("-")
    seeds = range(int(first), int(last) if last else int(first) + 1)
    summary = run_seeds(seeds, jobs=arguments.jobs)
    if arguments.json:
        more = {"ok": summary.ok, "missing": summary.missing, "faults": summary.faults}
        print(json.dumps({**asdict(summary), **more}))
    else:
        for seed, failure in summary.failed.items():
            print(f"seed {seed}: {failure}")
        for name in summary.missing:
            print(f"{name}: none, so nothing is proven")
        print(
            f"{summary.seeds} seeds, {len(summary.failed)} failed, {summary.records} records, "
            f"{summary.transfers} transfers, {summary.faults.total()} faults, "
            f"{summary.fenced} workers and {summary.fenced_sinks} sinks shut out, "
            f"{summary.in_doubt} commits in doubt, "
            f"{summary.simulated_s / 3_600:.1f} simulated hours in {summary.took_s} s"
        )
    return 0 if summary.ok else 1


if __name__ == "__main__":
    sys.exit(main())
