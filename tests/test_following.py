"""The follower's catalog is that of its records one by one, however many a fetch brings."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from policy.catalog import Catalog
from streams import topics
from streams.following import Follower, apply_entry, entry_key, remove_entry
from streams.records import ArmEntry, BudgetEntry, CatalogEntry, PriceEntry, encode

ENTRIES: list[CatalogEntry] = [
    ArmEntry(arm="a@p"),
    PriceEntry(arm="a@p", version=1, input=100, output=100),
    *(BudgetEntry(budget=name, limit_nanousd=limit) for name in ("x", "x/y") for limit in (1, 2)),
]


def follower() -> Follower:
    """Return a follower that is given its records by hand."""
    found = Follower.__new__(Follower)
    found.catalog, found.refused = Catalog(), {}
    return found


@given(st.lists(st.tuples(st.sampled_from(ENTRIES), st.booleans()), max_size=12), st.booleans())
def test_a_fetch_of_entries_makes_the_catalog_of_all_of_them(
    changes: list[tuple[CatalogEntry, bool]], together: bool
) -> None:
    expected, records = Catalog(), list[Any]()
    for offset, (entry, kept) in enumerate(changes):
        key = entry_key(entry)
        value = encode(entry) if kept else None
        records.append(SimpleNamespace(key=key, value=value, offset=offset))
        expected = apply_entry(expected, entry) if kept else remove_entry(expected, key)
    found = follower()
    for part in [records] if together else [[record] for record in records]:
        found._apply(topics.CATALOG, *part)
    assert found.refused == {}
    assert found.catalog.offset == len(changes)
    assert found.catalog.arms == expected.arms
    assert dict(found.catalog.budgets) == dict(expected.budgets)
