"""The catalog as one value: arms with their prices, budgets, and which policy decides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from policy.money import Price
from policy.terms import Arm, Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetSpec:
    """A budget as the catalog declares it; amounts in nano-dollars.

    ``per_request_nanousd`` paces the mean cost of a request; otherwise the clock paces. Where
    ``paced`` is False there is the hard cap only. The pacer's ``controller`` is ``curve`` or
    ``pid``.
    """

    budget: str
    limit_nanousd: int
    window: str = "day"
    per_request_nanousd: int | None = None
    paced: bool = True
    controller: str = "curve"


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalog:
    """All entries up to ``offset`` (the next one that was not read).

    ``arms`` are in the order in which they first appeared; that order is the column order of
    every array over arms.
    """

    arms: tuple[Arm, ...] = ()
    budgets: Mapping[str, BudgetSpec] = field(default_factory=lambda: MappingProxyType({}))
    settings: Settings = field(default_factory=Settings)
    encoder: str = "lexical"
    offset: int = 0

    def with_arm(self, arm: Arm) -> Catalog:
        """Return the catalog with this arm; its price is kept if the arm was known."""
        old = next((a for a in self.arms if a.arm == arm.arm), None)
        if old is None:
            return replace(self, arms=(*self.arms, arm))
        priced = replace(arm, price=arm.price or old.price)
        return replace(self, arms=tuple(priced if a is old else a for a in self.arms))

    def without_arm(self, arm: str) -> Catalog:
        """Return the catalog in which this arm is no longer deployed; its column stays."""
        return replace(
            self, arms=tuple(replace(a, deployed=False) if a.arm == arm else a for a in self.arms)
        )

    def with_price(self, arm: str, price: Price | None) -> Catalog:
        """Return the catalog with this price; an arm that is not declared yet stays undeployed."""
        if all(a.arm != arm for a in self.arms):
            return replace(self, arms=(*self.arms, Arm(arm=arm, price=price, deployed=False)))
        arms = tuple(replace(a, price=price) if a.arm == arm else a for a in self.arms)
        return replace(self, arms=arms)

    def with_budget(self, spec: BudgetSpec) -> Catalog:
        """Return the catalog with this budget added or replaced."""
        return replace(self, budgets=MappingProxyType({**self.budgets, spec.budget: spec}))

    def with_budgets(self, changes: Mapping[str, BudgetSpec | None]) -> Catalog:
        """Return the catalog with these budgets added or replaced, and those of None removed.

        One copy for all of them: one for each would take minutes for 100,000.
        """
        budgets = {**self.budgets, **changes}
        kept = {path: spec for path, spec in budgets.items() if spec is not None}
        return replace(self, budgets=MappingProxyType(kept))

    def without_budget(self, budget: str) -> Catalog:
        """Return the catalog without this budget."""
        rest = {path: spec for path, spec in self.budgets.items() if path != budget}
        return replace(self, budgets=MappingProxyType(rest))

    def budget_path(self, budget: str) -> tuple[BudgetSpec, ...]:
        """Return the declared budgets on the way from the root to ``budget``.

        Empty if ``budget`` itself is not declared: a misspelt key must not spend.

        Examples
        --------
        >>> catalog = Catalog().with_budget(BudgetSpec(budget="acme", limit_nanousd=5))
        >>> catalog = catalog.with_budget(BudgetSpec(budget="acme/search/k1", limit_nanousd=2))
        >>> [spec.budget for spec in catalog.budget_path("acme/search/k1")]
        ['acme', 'acme/search/k1']
        >>> catalog.budget_path("acme/search")
        ()
        """
        if budget not in self.budgets:
            return ()
        parts = budget.split("/")
        paths = ("/".join(parts[: depth + 1]) for depth in range(len(parts)))
        return tuple(self.budgets[path] for path in paths if path in self.budgets)
