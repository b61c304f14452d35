"""Plant bugs in copies of the product and demand that the tests find each of them.

    uv run python tests/teeth.py --json

The bugs and the tests that must find them are in ``tests/teeth_parts/teeth.toml``. The same tests
must pass where nothing is planted. Exit code 1 unless every bug is caught.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

if __name__ == "__main__":
    # So that the tests are found wherever this is started.
    sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.teeth_parts.bench import Bench, Bite, Run, Tooth, changed, load_teeth


@dataclass(slots=True, kw_only=True)
class Found:
    """What became of all planted bugs; ``unplanted`` are tests that fail without any."""

    bites: list[Bite] = field(default_factory=list)
    unplanted: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def caught(self) -> int:
        """Return how many bugs were caught."""
        return sum(bool(bite.caught_by) for bite in self.bites)

    @property
    def ok(self) -> bool:
        """Return whether every bug was caught, by tests that pass without it."""
        return bool(self.bites) and self.caught == len(self.bites) and not self.unplanted


def run_teeth(teeth: Sequence[Tooth], *, jobs: int) -> Found:
    """Plant each bug by itself and run its tests, so many at a time."""
    began, found = time.monotonic(), Found()
    with tempfile.TemporaryDirectory(prefix="tollway-teeth-") as folder:
        benches: queue.SimpleQueue[Bench] = queue.SimpleQueue()
        for number in range(jobs):
            benches.put(Bench(Path(folder) / str(number)))
        # All of them before the first is run: what is rotten is told at once.
        for tooth in teeth:
            changed(Path(folder) / "0", tooth)

        def bite(tooth: Tooth) -> Bite:
            bench = benches.get()
            try:
                return bench.bite(tooth)
            finally:
                benches.put(bench)

        def unplanted() -> Run:
            tests = list(dict.fromkeys(test for tooth in teeth for test in tooth.tests))
            bench = benches.get()
            try:
                return bench.run(tests, all_of_them=True)
            finally:
                benches.put(bench)

        with ThreadPoolExecutor(jobs) as pool:
            sound = pool.submit(unplanted)
            found.bites = list(pool.map(bite, teeth))
            run = sound.result()
        if run.code != 0:
            found.unplanted = run.failed or {"": f"pytest ended with {run.code}: {run.output}"}
    found.seconds = round(time.monotonic() - began, 1)
    return found


def as_json(found: Found) -> dict[str, object]:
    """Return what is printed with ``--json``."""
    return {
        "ok": found.ok,
        "planted": len(found.bites),
        "caught": found.caught,
        "unplanted_failures": found.unplanted,
        "seconds": found.seconds,
        "teeth": {
            bite.name: {"caught_by": bite.caught_by, "says": bite.says, "seconds": bite.seconds}
            for bite in found.bites
        },
    }


def main() -> int:
    """Plant the bugs that the arguments name, or all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these bugs")
    parser.add_argument("--quick", action="store_true", help="those that CI plants")
    parser.add_argument("--jobs", type=int, default=min(os.cpu_count() or 1, 2))
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args()
    teeth = [tooth for tooth in load_teeth() if tooth.quick or not given.quick]
    if given.only:
        unknown = set(given.only) - {tooth.name for tooth in teeth}
        if unknown:
            parser.error(f"no such bugs: {sorted(unknown)}")
        teeth = [tooth for tooth in teeth if tooth.name in given.only]
    found = run_teeth(teeth, jobs=given.jobs)
    if given.json:
        print(json.dumps(as_json(found)))
    else:
        for bite in found.bites:
            told = f"caught by {bite.caught_by}" if bite.caught_by else f"NOT CAUGHT: {bite.says}"
            print(f"{bite.seconds:6.1f} s  {bite.name}: {told}")
        for test, says in found.unplanted.items():
            print(f"fails without any planted bug: {test}: {says}")
        print(f"{found.caught} of {len(found.bites)} caught in {found.seconds} s")
    return 0 if found.ok else 1


if __name__ == "__main__":
    sys.exit(main())
