"""Loops over small arrays, compiled from the C sources beside this file when Tollway is installed.

Where numpy would need dozens of calls on small arrays, their price is that of calling. The build
(``hatch_build.py``) brings its own compiler; none has to be on the machine. Functions are given
addresses (:func:`pointers`): who calls them sees to their types and shapes (:func:`given`).
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

LIBRARY = Path(__file__).with_name("kernels.so")

Real, Index, Pointer = ctypes.c_double, ctypes.c_int64, ctypes.c_void_p
"""Types of a C function's parameters: ``double``, ``int64_t``, and the address of an array."""
# Of no length, since arrays may have none. An array's own ``ctypes.data`` takes four times as long.
_from_buffer, _byref = (ctypes.c_char * 0).from_buffer, ctypes.byref


def _loaded() -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(LIBRARY))
    except OSError as error:
        raise ImportError(
            f"{LIBRARY} cannot be loaded ({error}); `python hatch_build.py` compiles it"
        ) from error


_LIBRARY = _loaded()


def function(name: str, *parameters: Any, result: Any) -> Any:
    """Return a C function of the library; the interpreter's lock is not held while it runs."""
    found = getattr(_LIBRARY, name)
    found.argtypes, found.restype = parameters, result
    return found


def given(values: Any, dtype: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return a copy of what a C function is to read, of this type and without gaps.

    Raises
    ------
    ValueError
        If it has another shape: C would read beyond its end.
    """
    copy = np.array(values, dtype, order="C")
    if copy.shape != shape:
        raise ValueError(f"an array of shape {shape} is needed, not {copy.shape}")
    return copy


def pointers(*arrays: Any) -> list[Any]:
    """Return arrays as a C function takes them; each keeps its array alive.

    Raises
    ------
    BufferError or TypeError
        If an array has gaps or may not be written to.
    """
    return [_byref(_from_buffer(array)) for array in arrays]
