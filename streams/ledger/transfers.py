"""Rows of ``transfers`` as the bytes that binary COPY sends.

There are three a pair, and most of a row is what other rows hold too: the accounts of a budget,
its root, the arm. So those parts are encoded once and remembered; to let psycopg encode each row
takes four times as long. The other journals' rows have little in common and are left to psycopg.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache

from streams.ledger import rows
from streams.ledger.fold import Booked, Posting
from streams.ledger.reading import root_of

_COLUMNS = len(rows.TRANSFERS.columns)
# A row is its number of fields, and each field the length of its content before it.
_START = struct.Struct(">hiiiq")
_INT8 = struct.Struct(">iq")
_END = struct.Struct(">iqiq")


def encode(
    partition: int,
    line: int,
    decision: Booked,
    postings: Sequence[Posting],
    *,
    topics: Mapping[str, str],
    epoch: int,
) -> list[bytes]:
    """Return one row for each booking of the decision, the first in this line.

    ``topics`` are the names of the topics by the kind of the record that a booking stems from.

    Raises
    ------
    UnicodeEncodeError
        If a text holds half a character.
    """
    assert decision.price is not None
    request = _text(decision.request_id)
    subject = _text(decision.decision_id) + _subject(
        decision.budget, decision.arm or "", decision.price.version
    )
    start, int8, end, join = _START.pack, _INT8.pack, _END.pack, b"".join
    return [
        join(
            (
                start(_COLUMNS, 4, partition, 8, number),
                request,
                _accounts(posting.kind, posting.debit, posting.credit),
                int8(8, posting.amount_nanousd),
                subject,
                int8(8, posting.event_ms),
                _name(topics[posting.cause]),
                end(8, posting.offset, 8, epoch),
            )
        )
        for number, posting in enumerate(postings, line)
    ]


def _text(value: str) -> bytes:
    content = value.encode()
    return len(content).to_bytes(4, "big") + content


_name = lru_cache(maxsize=64)(_text)


@lru_cache(maxsize=16_384)
def _accounts(kind: str, debit: str, credit: str) -> bytes:
    return _text(kind) + _text(debit) + _text(credit)


@lru_cache(maxsize=16_384)
def _subject(budget: str, arm: str, price_version: int) -> bytes:
    return _text(budget) + _text(root_of(budget)) + _text(arm) + _INT8.pack(8, price_version)
