"""Plants a bug in a copy of the repository and runs the tests that must fail there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

HOME = Path(__file__).parents[2]
COPIED = ("policy", "streams", "migrations", "tests", "pyproject.toml")
TIMEOUT_S = 300.0
"""How long the tests of one planted bug may take."""


class RottenToothError(Exception):
    """The source has changed, so that a bug cannot be planted as it is written down."""

    def __init__(self, name: str, file: str, found: int) -> None:
        super().__init__(f"{name!r}: its text is {found} times in {file}, not once")
        self.name = name


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """One exact change of a file; ``old`` is in it once."""

    file: str
    old: str
    new: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tooth:
    """A planted bug, and the tests of which at least one must fail."""

    name: str
    bug: str
    tests: tuple[str, ...]
    edits: tuple[Edit, ...]
    quick: bool = False
    """Whether it is among those that CI runs."""


@dataclass(slots=True, kw_only=True)
class Bite:
    """What became of one planted bug; ``caught_by`` is empty where it was not caught."""

    name: str
    caught_by: str = ""
    says: str = ""
    seconds: float = 0.0


@dataclass(slots=True, kw_only=True)
class Run:
    """One run of tests: the exit code, and each failed test with what it says."""

    code: int
    failed: dict[str, str] = field(default_factory=dict)
    output: str = ""


def load_teeth() -> list[Tooth]:
    """Return all planted bugs that are written down."""
    raw = tomllib.loads((Path(__file__).with_name("teeth.toml")).read_text())
    teeth = [
        Tooth(
            name=one["name"],
            bug=one["bug"],
            tests=tuple(one["tests"]),
            edits=tuple(Edit(**edit) for edit in one["edit"]),
            quick=one.get("quick", False),
        )
        for one in raw["tooth"]
    ]
    names = [tooth.name for tooth in teeth]
    if len(set(names)) < len(names):
        raise ValueError("two planted bugs have the same name")
    return teeth


def changed(home: Path, tooth: Tooth) -> dict[Path, str]:
    """Return the files of ``home`` with the bug in them.

    Raises
    ------
    RottenToothError
        If a text is not there exactly once.
    """
    texts: dict[Path, str] = {}
    for edit in tooth.edits:
        path = home / edit.file
        text = texts.get(path) or path.read_text()
        if text.count(edit.old) != 1:
            raise RottenToothError(tooth.name, edit.file, text.count(edit.old))
        texts[path] = text.replace(edit.old, edit.new)
        compile(texts[path], edit.file, "exec")
    return texts


class Bench:
    """A copy of the repository in which bugs are planted, one at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        for name in COPIED:
            source = HOME / name
            if source.is_dir():
                shutil.copytree(source, folder / name)
            else:
                shutil.copy2(source, folder / name)

    def bite(self, tooth: Tooth) -> Bite:
        """Plant a bug, run its tests, and take it out again."""
        began = time.monotonic()
        texts = changed(self.folder, tooth)
        sound = {path: path.read_text() for path in texts}
        try:
            for path, text in texts.items():
                _rewrite(path, text)
            run = self.run(tooth.tests)
        finally:
            for path, text in sound.items():
                _rewrite(path, text)
        bite = Bite(name=tooth.name, seconds=round(time.monotonic() - began, 1))
        if run.code == 1 and run.failed:
            bite.caught_by, bite.says = next(iter(run.failed.items()))
        else:
            bite.says = f"pytest ended with {run.code}: {run.output[-300:]}"
        return bite

    def run(self, tests: Sequence[str], *, all_of_them: bool = False) -> Run:
        """Run tests in the copy, up to the first that fails."""
        report = self.folder / "report.xml"
        report.unlink(missing_ok=True)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
                   "-p", "tests.teeth_parts.plugin", f"--junitxml={report}",
                   "-o", "junit_family=xunit1", *tests]  # fmt: skip
        command += [] if all_of_them else ["-x"]
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        environment |= {"PYTHONPATH": str(self.folder), "OPENBLAS_NUM_THREADS": "1"}
        try:
            done = subprocess.run(
                command, cwd=self.folder, env=environment, capture_output=True, text=True,
                timeout=None if all_of_them else TIMEOUT_S, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return Run(code=-1, output=f"no end within {TIMEOUT_S:.0f} s")
        failed = _failures(report) if report.exists() else {}
        return Run(code=done.returncode, failed=failed, output=done.stdout + done.stderr)


def _rewrite(path: Path, text: str) -> None:
    path.write_text(text)
    # Bytecode is told from its source by second and size, and both may be the same.
    for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
        compiled.unlink()


def _failures(report: Path) -> dict[str, str]:
    """Return the tests that failed, not those that could not begin, with one line of why."""
    found: dict[str, str] = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        failure = case.find("failure")
        if failure is not None:
            place = case.get("file") or case.get("classname") or ""
            says = (failure.get("message") or "").strip().splitlines() or [""]
            found[f"{place}::{case.get('name')}"] = says[0][:200]
    return found
