"""Tables of the ledger and its chart of accounts.

One row of ``transfers`` moves one amount from one account to another, so the books balance by
construction. An account is a text ``<place>:<budget>``, the budget being the leaf that a request
named; its balance is the sum of its debits less the sum of its credits.

==========  ==================  ==================  =============================================
kind        debit               credit              when
==========  ==================  ==================  =============================================
reserve     reserved:<budget>   available:<budget>  a decision named an arm: its upper bound
settle      spent:<budget>      reserved:<budget>   usage is known: the cost, at most the reserved
release     available:<budget>  reserved:<budget>   ... and what the cost left over
overrun     overrun:<budget>    available:<budget>  ... and what the cost exceeded it by
expire      expired:<budget>    reserved:<budget>   no usage until the reservation expired
adjust      reserved:<budget>   expired:<budget>    usage came after that: settle, release follow
==========  ==================  ==================  =============================================

So ``reserved`` is money in flight, ``expired`` is money assumed spent, ``spent + overrun`` is
what calls really cost, and what a budget holds against its limit is ``reserved + spent +
expired``. Only reserve and release change that. Zero amounts are booked for reserve, settle,
expire and adjust, because the row is also the mark that it happened; not for release and overrun.

A request is its ``decision_id``, the hash of budget root and request id: roots that share a
partition may use the same request id. It has each kind at most once. Rows of a partition are
numbered without gaps in ``line``, in the order in which they were booked. Every write adds a row
to ``links``: the chain of hashes over the journals (:mod:`streams.ledger.chain`).
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    text,
)

KINDS = ("reserve", "settle", "release", "overrun", "expire", "adjust")

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _int8(name: str, *, default: int | None = None, nullable: bool = False) -> Column[int]:
    server_default = None if default is None else text(str(default))
    return Column(name, BigInteger, nullable=nullable, server_default=server_default)


cursors = Table(
    "cursors",
    metadata,
    Column("topic", Text, primary_key=True),
    Column("partition", Integer, primary_key=True, autoincrement=False),
    _int8("epoch", default=0),
    _int8("next_offset", default=0),
    # The largest record timestamp before next_offset, and how far expiry has been booked.
    _int8("clock_ms", default=0),
    _int8("swept_ms", default=0),
    # The next line of the partition's transfers; only the decisions' cursor counts it.
    _int8("next_line", default=0),
    _int8("duplicates", default=0),
    _int8("holes", default=0),
    Column("halted", Text),
    CheckConstraint(
        "epoch >= 0 AND next_offset >= 0 AND next_line >= 0 AND swept_ms <= clock_ms",
        name="position",
    ),
)
"""Where the sink stands. ``duplicates`` counts equal copies: of decisions, or of outcomes' parts.
``holes`` counts offsets that hold no record, such as transaction markers. ``halted`` says why a
partition stands still."""

decisions = Table(
    "decisions",
    metadata,
    Column("decision_id", Text, primary_key=True),
    Column("partition", Integer, nullable=False),
    _int8("decision_offset"),
    Column("request_id", Text, nullable=False),
    Column("budget", Text, nullable=False),
    Column("root", Text, nullable=False),
    Column("segment", Text, nullable=False),
    Column("policy", Text, nullable=False),
    Column("arm", Text),
    Column("rejected", Text),
    _int8("reserved_nanousd"),
    _int8("price_version", nullable=True),
    _int8("price_input", nullable=True),
    _int8("price_output", nullable=True),
    _int8("price_cached", nullable=True),
    _int8("input_tokens"),
    _int8("max_output_tokens"),
    _int8("decided_ms"),
    _int8("expires_ms"),
    # What the decision expected of its arm, and with which probability it chose it.
    Column("expected_reward", Double, nullable=False),
    _int8("expected_nanousd"),
    Column("propensity", Double, nullable=False),
    Column("explored", Boolean, nullable=False),
    # The next offsets that the worker's state had not applied yet.
    _int8("outcomes_seen"),
    _int8("catalog_seen"),
    Column("fingerprint", LargeBinary, nullable=False),
    Index(None, "request_id"),
    Index(
        "ix_decisions_partition_expires_ms",
        "partition",
        "expires_ms",
        postgresql_where=text("arm IS NOT NULL"),
    ),
    CheckConstraint("reserved_nanousd >= 0 AND expected_nanousd >= 0", name="amounts"),
    CheckConstraint(
        "(arm IS NULL) <> (rejected IS NULL) AND (arm IS NULL) = (price_version IS NULL)",
        name="arm_or_rejected",
    ),
)
"""The effective decision of each request: the one at the lowest offset."""

outcomes = Table(
    "outcomes",
    metadata,
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("outcome_offset", BigInteger, primary_key=True, autoincrement=False),
    Column("request_id", Text, nullable=False),
    # What the record's key and request id make, and what the record itself says, if it does.
    Column("decision_id", Text, nullable=False),
    Column("named_decision_id", Text),
    _int8("at_ms"),
    # The largest timestamp of the partition up to here: it decides whether the outcome is late.
    _int8("clock_ms"),
    _int8("prompt_tokens", nullable=True),
    _int8("completion_tokens", nullable=True),
    _int8("cached_tokens", nullable=True),
    _int8("billed_nanousd", nullable=True),
    Column("reward", Double),
    _int8("latency_ms", nullable=True),
    Column("error", Text),
    Index(None, "decision_id"),
    CheckConstraint("billed_nanousd >= 0", name="amounts"),
)
"""Every readable outcome, also copies and those whose decision is unknown."""

transfers = Table(
    "transfers",
    metadata,
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("line", BigInteger, primary_key=True, autoincrement=False),
    Column("request_id", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("debit_account", Text, nullable=False),
    Column("credit_account", Text, nullable=False),
    _int8("amount_nanousd"),
    Column("decision_id", Text, nullable=False),
    Column("budget", Text, nullable=False),
    Column("root", Text, nullable=False),
    Column("arm", Text, nullable=False),
    _int8("price_version"),
    _int8("event_ms"),
    Column("booked_at", DateTime(timezone=True), nullable=False, server_default=text("now()")),
    Column("source_topic", Text, nullable=False),
    _int8("source_offset"),
    _int8("epoch"),
    UniqueConstraint("decision_id", "kind"),
    CheckConstraint("amount_nanousd >= 0", name="amount"),
    CheckConstraint("debit_account <> credit_account", name="accounts"),
    CheckConstraint("kind IN ({})".format(", ".join(f"'{kind}'" for kind in KINDS)), name="kind"),
)
"""The journal; triggers refuse UPDATE, DELETE and TRUNCATE, as they do for decisions, outcomes and
links. The source's partition is the row's."""

links = Table(
    "links",
    metadata,
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("link", BigInteger, primary_key=True, autoincrement=False),
    _int8("epoch"),
    _int8("next_decision"),
    _int8("next_outcome"),
    _int8("next_line"),
    # That of the transfers of the link, too: the time at which its transaction began.
    Column("booked_at", DateTime(timezone=True), nullable=False),
    Column("decisions_sha256", LargeBinary, nullable=False),
    Column("outcomes_sha256", LargeBinary, nullable=False),
    Column("transfers_sha256", LargeBinary, nullable=False),
    Column("sha256", LargeBinary, nullable=False),
)
"""The chain over the rows of the three journals; triggers refuse what would change it."""

dead_letters = Table(
    "dead_letters",
    metadata,
    Column("topic", Text, primary_key=True),
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("record_offset", BigInteger, primary_key=True, autoincrement=False),
    Column("reason", Text, nullable=False),
    Column("detail", Text, nullable=False),
    Column("sha256", Text, nullable=False),
    _int8("size"),
    _int8("at_ms"),
)
"""Where a record lay that the ledger cannot book, and why; never what it held."""

conflicts = Table(
    "conflicts",
    metadata,
    Column("topic", Text, primary_key=True),
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("record_offset", BigInteger, primary_key=True, autoincrement=False),
    Column("part", Text, primary_key=True),
    Column("decision_id", Text, nullable=False),
    Column("request_id", Text, nullable=False),
    Column("reason", Text, nullable=False),
    # Where the record lies that counts instead.
    _int8("first_offset", nullable=True),
    _int8("at_ms"),
)
"""Records that contradict an earlier one; they have no effect."""

budget_limits = Table(
    "budget_limits",
    metadata,
    Column("budget", Text, primary_key=True),
    Column("catalog_offset", BigInteger, primary_key=True, autoincrement=False),
    # Null when the catalog withdrew the budget.
    _int8("limit_nanousd", nullable=True),
    Column("time_window", Text, nullable=False),
    _int8("at_ms"),
    CheckConstraint("limit_nanousd >= 0", name="limit"),
)
"""Every limit that the catalog set, from the offset at which it did."""

prices = Table(
    "prices",
    metadata,
    Column("arm", Text, primary_key=True),
    Column("catalog_offset", BigInteger, primary_key=True, autoincrement=False),
    _int8("version"),
    _int8("price_input"),
    _int8("price_output"),
    _int8("price_cached", nullable=True),
    _int8("at_ms"),
)
"""Every price that the catalog set, micro-dollars per million tokens."""
