"""The packages: ours, and importing in one direction only."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ACTING = {
    "aiokafka", "asyncio", "datetime", "faust", "logging", "msgspec", "os", "psycopg", "random",
    "socket", "sqlalchemy", "streams", "subprocess", "time",
}  # fmt: skip
ALLOWED = {"msgspec", "datetime"}
"""A codec for the pages, and dates for calendar windows: neither asks the world anything."""


@pytest.mark.parametrize("package", ["policy", "streams", "migrations"])
def test_the_package_is_the_one_beside_the_tests(package: str) -> None:
    found = importlib.import_module(package).__file__
    assert found is not None
    assert Path(found).parent == ROOT / package


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module.partition(".")[0])
    return found


def test_policy_decides_without_acting() -> None:
    found = {
        path.name: imports(path) & ACTING - ALLOWED for path in (ROOT / "policy").rglob("*.py")
    }
    assert {name: modules for name, modules in found.items() if modules} == {}
    for path in (ROOT / "policy").rglob("*.py"):
        text = path.read_text()
        assert ".now(" not in text, path
        assert ".today(" not in text, path


def test_only_the_command_line_reads_the_environment() -> None:
    # Handing all of it to a child process is not reading it.
    asks = re.compile(r"environ\[|environ\.get|getenv|from_env\(os\.environ")
    readers = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "streams").rglob("*.py")
        if asks.search(path.read_text())
    }
    assert readers <= {"streams/__main__.py"}


def test_the_import_contracts_hold() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True,
                          check=False, timeout=120)  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


def test_a_module_has_at_most_300_lines() -> None:
    modules = [path for name in ("policy", "streams") for path in (ROOT / name).rglob("*.py")]
    assert modules
    lines = {path.name: len(path.read_text().splitlines()) for path in modules}
    assert {name: count for name, count in lines.items() if count > 300} == {}
