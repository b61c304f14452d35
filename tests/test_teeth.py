"""The tests find planted bugs: the quick ones here, all of them by ``tests/teeth.py``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.teeth import as_json, run_teeth
from tests.teeth_parts.bench import HOME, Bench, Edit, RottenToothError, Tooth, changed, load_teeth

TEETH = load_teeth()
QUICK = [tooth for tooth in TEETH if tooth.quick]


def test_every_bug_can_still_be_planted() -> None:
    assert len(TEETH) >= 20
    for tooth in TEETH:
        assert tooth.tests, tooth.name
        assert all(path.read_text() != text for path, text in changed(HOME, tooth).items())


@pytest.mark.slow
def test_the_quick_ones_are_caught() -> None:
    assert len(QUICK) >= 8
    found = run_teeth(QUICK, jobs=2)
    assert found.ok, as_json(found)


def test_what_is_no_bug_is_not_caught(tmp_path: Path) -> None:
    """A comment as a bug: its test passes, nothing is caught, and the source is as before."""
    harmless = Tooth(
        name="a comment",
        bug="none",
        tests=("tests/test_teeth_gaps.py::test_a_link_depends_on_all_before_it",),
        edits=(
            Edit(file="streams/ledger/chain.py", old="import struct\n", new="import struct  #\n"),
        ),
    )
    bench = Bench(tmp_path / "copy")
    source = bench.folder / "streams/ledger/chain.py"
    before = source.read_text()
    bite = bench.bite(harmless)
    assert (bite.caught_by, bite.says[:20]) == ("", "pytest ended with 0:")
    assert source.read_text() == before


def test_a_bug_that_cannot_be_planted_is_told() -> None:
    rotten = Tooth(
        name="rotten", bug="", tests=("tests",),
        edits=(Edit(file="policy/money.py", old="return", new="return"),),
    )  # fmt: skip
    with pytest.raises(RottenToothError, match=r"'rotten': its text is \d+ times"):
        changed(HOME, rotten)
