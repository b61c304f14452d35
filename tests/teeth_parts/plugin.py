"""A plugin for pytest runs on a copy of the repository; see ``tests.teeth_parts.bench``."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import Phase, settings

# One failing example is enough: making it smaller would take most of the time. And the same
# examples every time, so that a bug is caught or not caught for good.
settings.register_profile(
    "teeth",
    phases=(Phase.explicit, Phase.generate),
    derandomize=True,
    database=None,
    deadline=None,
)
settings.load_profile("teeth")


def pytest_sessionstart(session: pytest.Session) -> None:
    """End at once if the product would be imported from anywhere but this copy."""
    import policy
    import streams

    for package in (policy, streams):
        home = Path(str(package.__file__)).parents[1]
        if home.resolve() != Path.cwd().resolve():
            pytest.exit(f"{package.__name__} comes from {home}", returncode=4)
