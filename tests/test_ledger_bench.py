"""The ledger's benchmark books what it says, and both sides the same rows."""

from __future__ import annotations

import pytest

from streams.bench import ledger as bench
from streams.embedded import PostgresServer
from streams.ledger.reading import read_decision, read_outcome

pytestmark = pytest.mark.postgres


def test_both_write_the_same_rows_and_are_compared_round_by_round(
    _session_postgres: PostgresServer,
) -> None:
    said: list[str] = []
    shape = bench.Shape(pairs=60, flush=25, rounds=2)
    result = bench.measure(_session_postgres, shape, say=said.append)
    assert len(said) == 2
    assert result["fsync"] == "on"
    assert result["per_s"].keys() == {"sink", "copy_on_conflict"}
    ratio = result["ratios"]["copy_on_conflict"]
    assert ratio > 0
    assert "ratio copy_on_conflict: " in bench.show(result)


def test_pairs_are_whole_records_of_different_requests() -> None:
    pairs = list(bench.make_pairs(bench.Shape(pairs=50), start=7))
    decisions = [read_decision(decision)[0] for decision, _, _ in pairs]
    outcomes = [read_outcome(outcome) for _, outcome, _ in pairs]
    assert len({decision.decision_id for decision in decisions}) == 50
    assert [o.decision_id for o in outcomes] == [d.decision_id for d in decisions]
    assert {len(decision.candidates) for decision in decisions} == {10}
    assert {key.decode() for *_, key in pairs} == {d.budget.split("/")[0] for d in decisions}
