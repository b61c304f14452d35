"""The records of every topic, strictly decoded; the one place that knows their JSON.

Each struct is one schema version (``v``). A record of this version with an unknown field is
refused, because a misspelt ``max_output_tokens`` must not become a silent default. A record of a
newer version keeps its unknown fields: what this version knows is read, the rest is left alone.
Records are read with :func:`decode`, which raises :class:`BadRecordError` with a short reason.
"""

from streams.records.calls import (
    BudgetPosition,
    Candidate,
    Candidates,
    Decision,
    Outcome,
    PriceTag,
    Request,
    Seen,
    Usage,
    Waiting,
    decision_id,
    request_digest,
    request_digests,
)
from streams.records.codec import (
    RECORD_BYTES_MAX,
    BadRecordError,
    decode,
    decode_catalog,
    encode,
    fields_of,
)
from streams.records.entries import ArmEntry, BudgetEntry, CatalogEntry, PolicyEntry, PriceEntry
from streams.records.fields import (
    BUDGET_LENGTH_MAX,
    BUDGET_PATTERN,
    IDENTIFIER_PATTERN,
    SCHEMA,
    BudgetPath,
)
from streams.records.upkeep import DeadLetter, LedgerHead, Statistics

__all__ = [
    "BUDGET_LENGTH_MAX",
    "BUDGET_PATTERN",
    "IDENTIFIER_PATTERN",
    "RECORD_BYTES_MAX",
    "SCHEMA",
    "ArmEntry",
    "BadRecordError",
    "BudgetEntry",
    "BudgetPath",
    "BudgetPosition",
    "Candidate",
    "Candidates",
    "CatalogEntry",
    "DeadLetter",
    "Decision",
    "LedgerHead",
    "Outcome",
    "PolicyEntry",
    "PriceEntry",
    "PriceTag",
    "Request",
    "Seen",
    "Statistics",
    "Usage",
    "Waiting",
    "decision_id",
    "decode",
    "decode_catalog",
    "encode",
    "fields_of",
    "request_digest",
    "request_digests",
]
