"""The chain of hashes over the journals, one per partition."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

REFUSE_ROWS = """
CREATE TRIGGER links_rows_stay BEFORE UPDATE OR DELETE ON links
FOR EACH ROW EXECUTE FUNCTION refuse_change()
"""
REFUSE_TRUNCATE = """
CREATE TRIGGER links_stays BEFORE TRUNCATE ON links
FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()
"""


def upgrade() -> None:
    """Create the table of links, append-only like the journals."""
    op.create_table(
        "links",
        sa.Column("partition", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("link", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("next_decision", sa.BigInteger(), nullable=False),
        sa.Column("next_outcome", sa.BigInteger(), nullable=False),
        sa.Column("next_line", sa.BigInteger(), nullable=False),
        sa.Column("booked_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("decisions_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("outcomes_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("transfers_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("sha256", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("partition", "link", name=op.f("pk_links")),
    )
    op.execute(REFUSE_ROWS)
    op.execute(REFUSE_TRUNCATE)


def downgrade() -> None:
    """Drop it."""
    op.drop_table("links")
