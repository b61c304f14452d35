"""Who spends, on what, and at which prices: the world of one seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from streams.records import (
    ArmEntry,
    BudgetEntry,
    CatalogEntry,
    PolicyEntry,
    PriceEntry,
)
from streams.topics import home_partition

PARTITIONS = 4
DIMENSIONS = 8
TTL_S = 20
DEFER_MS = 3_000
SESSION_S = 3
ARMS = {
    "small@a": (100_000, 400_000, None),
    "medium@a": (1_000_000, 3_000_000, 250_000),
    "large@b": (5_000_000, 15_000_000, None),
}
"""Price of input, of output and of cached input, micro-dollars per million tokens."""
RICH_NANOUSD = 10**15
MEAN_COST_NANOUSD = 150_000
_PATHS = {"": 1.0, "/ops": 0.8, "/ops/day": 0.5, "/ops/night": 0.5, "/lab": 0.6}
"""Budgets below a root, and their part of the root's limit: together more than there is."""
_LEAVES = ("/ops/day", "/ops/night", "/lab")


@dataclass(frozen=True, slots=True, kw_only=True)
class Root:
    """A budget root: rich ones never run out, the others are meant to."""

    name: str
    weight: float
    kind: str
    window: str

    @property
    def key(self) -> bytes:
        """Return the key of its records."""
        return self.name.encode()

    @property
    def partition(self) -> int:
        """Return where its records lie."""
        return home_partition(self.key, PARTITIONS)

    @property
    def leaves(self) -> Sequence[str]:
        """Return the budgets that requests name."""
        return [self.name + path for path in _LEAVES]


@dataclass(slots=True, kw_only=True)
class World:
    """The roots, and the budgets with limit and window."""

    roots: list[Root]
    budgets: dict[str, tuple[int, str]] = field(default_factory=dict)

    def catalog(self) -> list[CatalogEntry]:
        """Return the catalog's entries."""
        entries: list[CatalogEntry] = [PolicyEntry(dimensions=DIMENSIONS, encoder="none")]
        for arm, (price_in, price_out, cached) in ARMS.items():
            entries.append(ArmEntry(arm=arm, capabilities=["text"], explore=5))
            entries.append(
                PriceEntry(arm=arm, version=1, input=price_in, output=price_out, cached=cached)
            )
        paced = {root.name for root in self.roots if root.kind == "window"}
        for budget, (limit, window) in self.budgets.items():
            pacing = "even" if budget in paced else "none"
            entries.append(
                BudgetEntry(budget=budget, limit_nanousd=limit, window=window, pacing=pacing)
            )
        return entries


def make_world(seed: int, *, seconds: float, rate: float) -> World:
    """Return the roots of a seed: in every partition a rich one, a tight one and one by windows."""
    chance = random.Random(f"world {seed}")
    kinds = [("rich", "total"), ("tight", "total"), ("window", "15s")]
    roots = []
    for number in range(PARTITIONS):
        for kind, window in kinds:
            name = next(
                f"{kind}-{n}"
                for n in range(chance.randrange(10_000), 20_000)
                if home_partition(f"{kind}-{n}".encode(), PARTITIONS) == number
            )
            # Some roots are asked for thirty times as much as others.
            weight = 30 ** chance.random() * (3 if kind == "rich" else 1)
            roots.append(Root(name=name, weight=weight, kind=kind, window=window))
    total = sum(root.weight for root in roots)
    world = World(roots=roots)
    for root in roots:
        share = root.weight / total * rate * MEAN_COST_NANOUSD
        # Windows have twice what is spent in them in calm: they bind when a backlog is caught up
        # with, but an hour of outages must not leave one that takes another hour.
        limit = {"rich": RICH_NANOUSD, "tight": share * seconds * 0.5, "window": share * 15 * 0.7}
        for path, part in _PATHS.items():
            amount = max(int(limit[root.kind] * part), 10 * MEAN_COST_NANOUSD)
            world.budgets[root.name + path] = (amount, root.window)
    return world
