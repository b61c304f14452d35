"""Python's search for garbage, set for programs that work through batches."""

from __future__ import annotations

import gc


def relax_collector() -> None:
    """Look for garbage less often; to be called once all modules are loaded.

    A batch makes tens of thousands of objects, no cycles among them, and drops them again. By
    default they are looked at every 700 new ones, and now and then all that is kept is, too.
    """
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)
