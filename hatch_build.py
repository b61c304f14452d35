"""Compiles ``policy/native/*.c`` when Tollway is built or installed; as a program, in place.

The compiler is that of Zig (its package ``ziglang``, a requirement of the build alone), so that a
machine needs none of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "policy" / "native"
LIBRARY = FOLDER / "kernels.so"
OPTIONS = (
    # For every processor of this kind, not only the one that compiles; and no multiplication and
    # addition in one rounding: the numbers are the same to a bit wherever they are computed.
    "-O3", "-mcpu=baseline", "-ffp-contract=off", "-fno-math-errno", "-std=c11", "-Wall",
    "-Wextra", "-Werror", "-shared", "-fPIC", "-s",
)  # fmt: skip


def compile_library() -> None:
    """Compile the library; ``subprocess.CalledProcessError`` if the compiler refuses."""
    sources = sorted(str(path) for path in FOLDER.glob("*.c"))
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / LIBRARY.name
        subprocess.run(
            [sys.executable, "-m", "ziglang", "cc", *OPTIONS, "-o", str(made), *sources, "-lm"],
            check=True,
            env={**os.environ, "ZIG_LOCAL_CACHE_DIR": folder},
        )
        # A program that has the old one loaded keeps it.
        fresh = LIBRARY.with_suffix(".new")
        fresh.write_bytes(made.read_bytes())
        fresh.replace(LIBRARY)


if __name__ == "__main__":
    compile_library()
else:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface

    class CompiledLoops(BuildHookInterface):  # type: ignore[misc,type-arg]
        """Compiles the library and says that the wheel is for this kind of machine."""

        def initialize(self, version: str, build_data: dict[str, Any]) -> None:
            """Compile before the files are collected."""
            compile_library()
            build_data["pure_python"] = False
            build_data["artifacts"].append("policy/native/kernels.so")
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["tag"] = f"py3-none-{platform}"
