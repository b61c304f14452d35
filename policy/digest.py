"""One hash for everything that a partition knows, equal for equal states.

Pages carry numbers in order of first use and places in order of arrival; here every such number
is written out, so that a state that went through kills and one that did not are compared.
"""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec
import numpy as np

from policy.pages import PageKey
from policy.reservation_rows import ROW_DTYPE
from policy.state import State

_NUMBERED = ("arm", "segment", "budgets")


def state_digest(state: State) -> str:
    """Return the SHA-256 of a state in hexadecimal digits.

    Budgets, remembered decisions, windows, what was learned of each arm, the ring of contexts, and
    how far the logs are contained. What waits or is parked follows from the logs.
    """
    digest = hashlib.sha256()

    def add(*values: object) -> None:
        digest.update(msgspec.msgpack.encode(values))

    add("position", *state.gate.position)
    for name, content in sorted(state.budgets.content().items()):
        add("budget", name, content)
    for page in state.reservations.pages():
        add("reservation", page[1], *_rows(_data(state, page)))
    for arm, segment in sorted(state.windows.keys()):
        add("window", arm, segment, _data(state, ("window", f"{arm} {segment}")))
    for arm in sorted(arm.arm for arm in state.catalog.arms):
        add("arm", arm, _data(state, ("arm", arm)))
    add("ring", _data(state, ("ring", "")))
    return digest.hexdigest()


def _data(state: State, page: PageKey) -> bytes:
    """Return a page without its position, which says only when it was asked for."""
    data: bytes = msgspec.msgpack.decode(state.dump_page(page))[-1]
    return data


def _rows(data: bytes) -> list[Any]:
    """Return a segment's rows with texts in place of numbers."""
    places, raw, features, *texts = msgspec.msgpack.decode(data)
    rows = np.frombuffer(raw, ROW_DTYPE).copy()
    arms, budgets, segments = dict(enumerate(texts[0])), dict(texts[1]), dict(enumerate(texts[2]))
    names = []
    for field, known in zip(_NUMBERED, (arms, segments, budgets), strict=True):
        names.append([known.get(int(number), "") for number in rows[field]])
        rows[field] = 0
    return [places, rows.tobytes(), features, *names]
