"""From which features something was learned, written before it."""

from __future__ import annotations

_MARKED = b"\xff" * 8
"""No state begins so: lengths and orders are not negative."""


def mark_of(features: str) -> bytes:
    """Return what is written before a state that was learned from features of that name.

    Nothing for features without a name (:class:`policy.terms.Settings`).
    """
    name = features.encode()
    return _MARKED + bytes([len(name)]) + name if name else b""


def split_mark(state: bytes) -> tuple[bytes, bytes]:
    """Return the mark of a state and what comes after it.

    Examples
    --------
    >>> split_mark(mark_of("lexical-0123456789ab") + b"learned")[1], split_mark(b"learned")
    (b'learned', (b'', b'learned'))
    """
    if not state.startswith(_MARKED) or len(state) == len(_MARKED):
        return b"", state
    end = len(_MARKED) + 1 + state[len(_MARKED)]
    return state[:end], state[end:]
