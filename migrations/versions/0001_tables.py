"""The tables of the ledger; what is booked cannot be changed or removed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

REFUSE = """
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% of % refused: the ledger is append-only', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'insufficient_privilege';
END
$$
"""
# A row trigger does not see TRUNCATE, so each journal has two.
REFUSE_ROWS = """
CREATE TRIGGER {table}_rows_stay BEFORE UPDATE OR DELETE ON {table}
FOR EACH ROW EXECUTE FUNCTION refuse_change()
"""
REFUSE_TRUNCATE = """
CREATE TRIGGER {table}_stays BEFORE TRUNCATE ON {table}
FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()
"""
JOURNALS = ("transfers", "decisions", "outcomes")


def upgrade() -> None:
    """Create the tables and the triggers that keep the journal append-only."""
    op.create_table(
        "budget_limits",
        sa.Column("budget", sa.Text(), nullable=False),
        sa.Column("catalog_offset", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("limit_nanousd", sa.BigInteger(), nullable=True),
        sa.Column("time_window", sa.Text(), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("limit_nanousd >= 0", name=op.f("ck_budget_limits_limit")),
        sa.PrimaryKeyConstraint("budget", "catalog_offset", name=op.f("pk_budget_limits")),
    )
    op.create_table(
        "conflicts",
        sa.Column("topic", sa.Text(), nullable=False),
        sa.Column("partition", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("record_offset", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("part", sa.Text(), nullable=False),
        sa.Column("decision_id", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("first_offset", sa.BigInteger(), nullable=True),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint(
            "topic", "partition", "record_offset", "part", name=op.f("pk_conflicts")
        ),
    )
    op.create_table(
        "cursors",
        sa.Column("topic", sa.Text(), nullable=False),
        sa.Column("partition", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("epoch", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("next_offset", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("clock_ms", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("swept_ms", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("next_line", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("duplicates", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("holes", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("halted", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "epoch >= 0 AND next_offset >= 0 AND next_line >= 0 AND swept_ms <= clock_ms",
            name=op.f("ck_cursors_position"),
        ),
        sa.PrimaryKeyConstraint("topic", "partition", name=op.f("pk_cursors")),
    )
    op.create_table(
        "dead_letters",
        sa.Column("topic", sa.Text(), nullable=False),
        sa.Column("partition", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("record_offset", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint(
            "topic", "partition", "record_offset", name=op.f("pk_dead_letters")
        ),
    )
    op.create_table(
        "decisions",
        sa.Column("decision_id", sa.Text(), nullable=False),
        sa.Column("partition", sa.Integer(), nullable=False),
        sa.Column("decision_offset", sa.BigInteger(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("budget", sa.Text(), nullable=False),
        sa.Column("root", sa.Text(), nullable=False),
        sa.Column("segment", sa.Text(), nullable=False),
        sa.Column("policy", sa.Text(), nullable=False),
        sa.Column("arm", sa.Text(), nullable=True),
        sa.Column("rejected", sa.Text(), nullable=True),
        sa.Column("reserved_nanousd", sa.BigInteger(), nullable=False),
        sa.Column("price_version", sa.BigInteger(), nullable=True),
        sa.Column("price_input", sa.BigInteger(), nullable=True),
        sa.Column("price_output", sa.BigInteger(), nullable=True),
        sa.Column("price_cached", sa.BigInteger(), nullable=True),
        sa.Column("input_tokens", sa.BigInteger(), nullable=False),
        sa.Column("max_output_tokens", sa.BigInteger(), nullable=False),
        sa.Column("decided_ms", sa.BigInteger(), nullable=False),
        sa.Column("expires_ms", sa.BigInteger(), nullable=False),
        sa.Column("expected_reward", sa.Double(), nullable=False),
        sa.Column("expected_nanousd", sa.BigInteger(), nullable=False),
        sa.Column("propensity", sa.Double(), nullable=False),
        sa.Column("explored", sa.Boolean(), nullable=False),
        sa.Column("outcomes_seen", sa.BigInteger(), nullable=False),
        sa.Column("catalog_seen", sa.BigInteger(), nullable=False),
        sa.Column("fingerprint", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint(
            "(arm IS NULL) <> (rejected IS NULL) AND (arm IS NULL) = (price_version IS NULL)",
            name=op.f("ck_decisions_arm_or_rejected"),
        ),
        sa.CheckConstraint(
            "reserved_nanousd >= 0 AND expected_nanousd >= 0", name=op.f("ck_decisions_amounts")
        ),
        sa.PrimaryKeyConstraint("decision_id", name=op.f("pk_decisions")),
    )
    op.create_index(op.f("ix_decisions_request_id"), "decisions", ["request_id"], unique=False)
    op.create_index(
        "ix_decisions_partition_expires_ms",
        "decisions",
        ["partition", "expires_ms"],
        unique=False,
        postgresql_where=sa.text("arm IS NOT NULL"),
    )
    op.create_table(
        "outcomes",
        sa.Column("partition", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("outcome_offset", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("decision_id", sa.Text(), nullable=False),
        sa.Column("named_decision_id", sa.Text(), nullable=True),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("clock_ms", sa.BigInteger(), nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger(), nullable=True),
        sa.Column("completion_tokens", sa.BigInteger(), nullable=True),
        sa.Column("cached_tokens", sa.BigInteger(), nullable=True),
        sa.Column("billed_nanousd", sa.BigInteger(), nullable=True),
        sa.Column("reward", sa.Double(), nullable=True),
        sa.Column("latency_ms", sa.BigInteger(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.CheckConstraint("billed_nanousd >= 0", name=op.f("ck_outcomes_amounts")),
        sa.PrimaryKeyConstraint("partition", "outcome_offset", name=op.f("pk_outcomes")),
    )
    op.create_index(op.f("ix_outcomes_decision_id"), "outcomes", ["decision_id"], unique=False)
    op.create_table(
        "prices",
        sa.Column("arm", sa.Text(), nullable=False),
        sa.Column("catalog_offset", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("price_input", sa.BigInteger(), nullable=False),
        sa.Column("price_output", sa.BigInteger(), nullable=False),
        sa.Column("price_cached", sa.BigInteger(), nullable=True),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("arm", "catalog_offset", name=op.f("pk_prices")),
    )
    op.create_table(
        "transfers",
        sa.Column("partition", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("line", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("debit_account", sa.Text(), nullable=False),
        sa.Column("credit_account", sa.Text(), nullable=False),
        sa.Column("amount_nanousd", sa.BigInteger(), nullable=False),
        sa.Column("decision_id", sa.Text(), nullable=False),
        sa.Column("budget", sa.Text(), nullable=False),
        sa.Column("root", sa.Text(), nullable=False),
        sa.Column("arm", sa.Text(), nullable=False),
        sa.Column("price_version", sa.BigInteger(), nullable=False),
        sa.Column("event_ms", sa.BigInteger(), nullable=False),
        sa.Column(
            "booked_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.Column("source_topic", sa.Text(), nullable=False),
        sa.Column("source_offset", sa.BigInteger(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "kind IN ('reserve', 'settle', 'release', 'overrun', 'expire', 'adjust')",
            name=op.f("ck_transfers_kind"),
        ),
        sa.CheckConstraint("amount_nanousd >= 0", name=op.f("ck_transfers_amount")),
        sa.CheckConstraint("debit_account <> credit_account", name=op.f("ck_transfers_accounts")),
        sa.PrimaryKeyConstraint("partition", "line", name=op.f("pk_transfers")),
        sa.UniqueConstraint("decision_id", "kind", name=op.f("uq_transfers_decision_id_kind")),
    )
    op.execute(REFUSE)
    for table in JOURNALS:
        op.execute(REFUSE_ROWS.format(table=table))
        op.execute(REFUSE_TRUNCATE.format(table=table))


def downgrade() -> None:
    """Drop the ledger with all that it holds."""
    op.drop_table("transfers")
    op.drop_table("prices")
    op.drop_index(op.f("ix_outcomes_decision_id"), table_name="outcomes")
    op.drop_table("outcomes")
    op.drop_index(op.f("ix_decisions_request_id"), table_name="decisions")
    op.drop_index(
        "ix_decisions_partition_expires_ms",
        table_name="decisions",
        postgresql_where=sa.text("arm IS NOT NULL"),
    )
    op.drop_table("decisions")
    op.drop_table("dead_letters")
    op.drop_table("cursors")
    op.drop_table("conflicts")
    op.drop_table("budget_limits")
    op.execute("DROP FUNCTION refuse_change()")
