"""What the benchmarks decide: a catalog, requests and outcomes, all from a seed."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from policy.catalog import BudgetSpec, Catalog
from policy.money import AMOUNT_MAX
from policy.terms import Floats, Ints
from streams import topics
from streams.following import apply_entry
from streams.records import (
    ArmEntry,
    BudgetEntry,
    CatalogEntry,
    Outcome,
    PolicyEntry,
    PriceEntry,
    Request,
    Usage,
    encode,
)

ROOTS_PER_PARTITION = 4
LIMIT_NANOUSD = 10**15
"""Of a budget; nothing is refused for money in a benchmark of speed."""

Value = tuple[bytes, bytes]
"""Key and value of a record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A catalog and the requests under it.

    ``levels`` is the length of a request's budget path, its root included.
    """

    arms: int = 10
    features: int = 26
    budgets: int = 64
    levels: int = 2
    partitions: int = 8
    seed: int = 3000

    def paths(self) -> tuple[str, ...]:
        """Return the budgets that requests name, in the order in which they are named."""
        return _paths(self)

    def entries(self) -> list[CatalogEntry]:
        """Return the catalog's entries: policy, arms with prices, budgets on every level."""
        entries: list[CatalogEntry] = [PolicyEntry(dimensions=self.features, encoder="none")]
        for number in range(self.arms):
            arm, price = f"model-{number}@bench", int(50_000 * 2 ** (10 * number / self.arms))
            entries.append(ArmEntry(arm=arm, prior_output_tokens=150))
            entries.append(PriceEntry(arm=arm, version=1, input=price, output=4 * price))
        above = min(LIMIT_NANOUSD * self.budgets, AMOUNT_MAX)
        return entries + [
            # What is above a budget never binds before it.
            BudgetEntry(budget=name, limit_nanousd=LIMIT_NANOUSD if leaf else above)
            for name, leaf in self._tree().items()
        ]

    def catalog(self) -> Catalog:
        """Return the catalog that these entries make."""
        catalog, budgets = Catalog(), {}
        for entry in self.entries():
            if isinstance(entry, BudgetEntry):
                spec = BudgetSpec(budget=entry.budget, limit_nanousd=entry.limit_nanousd)
                budgets[entry.budget] = spec
            else:
                catalog = apply_entry(catalog, entry)
        return replace(catalog, budgets=MappingProxyType(budgets))

    def vectors(self, count: int, *, number: int = 0) -> Floats:
        """Return the features of the requests of one round, shape (count, features)."""
        rng = np.random.default_rng([self.seed, number])
        return rng.normal(size=(count, self.features)).round(4)

    def requests(self, count: int, *, number: int = 0, tag: str = "") -> list[Value]:
        """Return the requests of one round, with ids that no other round or tag uses."""
        features = self.vectors(count, number=number).tolist()
        rng = np.random.default_rng([self.seed, number, 1])
        tokens = rng.integers(20, 2_000, count).tolist()
        paths = self.paths()
        values = []
        for row in range(count):
            budget = paths[row % len(paths)]
            request = Request(
                request_id=f"bench-{number}-{tag}-{row}", budget=budget, input_tokens=tokens[row],
                max_output_tokens=1_024, features=features[row],
            )  # fmt: skip
            values.append((budget.partition("/")[0].encode(), encode(request)))
        return values

    def outcomes(self, count: int, *, number: int = 0, tag: str = "") -> list[Value]:
        """Return the outcomes of the same requests: usage, reward and latency in one record."""
        rng = np.random.default_rng([self.seed, number, 2])
        output: Ints = rng.integers(50, 300, count)
        reward: Floats = rng.random(count).round(3)
        paths = self.paths()
        return [
            (
                paths[row % len(paths)].partition("/")[0].encode(),
                encode(
                    Outcome(
                        request_id=f"bench-{number}-{tag}-{row}",
                        usage=Usage(prompt_tokens=200, completion_tokens=int(output[row])),
                        reward=float(reward[row]),
                        latency_ms=500,
                    )
                ),
            )
            for row in range(count)
        ]

    def _roots(self) -> list[str]:
        """Return names whose hashes fill the partitions evenly: one after the other."""
        count = min(self.budgets, ROOTS_PER_PARTITION * self.partitions)
        taken: dict[int, int] = dict.fromkeys(range(self.partitions), 0)
        roots: list[str] = []
        for number in itertools.count():
            if len(roots) == count:
                return roots
            name = f"root-{number}"
            home = topics.home_partition(name.encode(), self.partitions)
            if taken[home] == min(taken.values()):
                taken[home] += 1
                roots.append(name)
        raise AssertionError("names do not end")

    def _tree(self) -> dict[str, bool]:
        """Return every declared budget, parents first, and whether requests name it."""
        tree: dict[str, bool] = {}
        for path in self.paths():
            parts = path.split("/")
            for depth in range(1, len(parts)):
                tree["/".join(parts[:depth])] = False
            tree[path] = True
        return tree


@functools.lru_cache(maxsize=4)
def _paths(workload: Workload) -> tuple[str, ...]:
    # Of 100,000 budgets 25 ms: a feed that asks at every few requests would take half a core.
    roots = workload._roots()
    middle = "".join(f"/level-{level}" for level in range(2, workload.levels))
    return tuple(f"{roots[n % len(roots)]}{middle}/key-{n}" for n in range(workload.budgets))


def by_partition(values: Sequence[Value], partitions: int) -> dict[int, list[Value]]:
    """Return the records by the partition that the hash of their key gives."""
    divided: dict[int, list[Value]] = {}
    for key, value in values:
        divided.setdefault(topics.home_partition(key, partitions), []).append((key, value))
    return divided
