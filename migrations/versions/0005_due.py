"""A reservation whose time is over, but whose expiry is not booked yet, is due and not open."""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

RESERVATIONS = """
CREATE OR REPLACE VIEW audit_reservations AS
SELECT CASE WHEN r.is_expired THEN 'expired'{due} ELSE 'open' END AS state,
    d.budget, d.arm, d.request_id, r.reserved_nanousd,
    to_timestamp(d.decided_ms / 1000.0) AS decided_at,
    to_timestamp(d.expires_ms / 1000.0) AS expires_at
FROM audit_requests r JOIN decisions d USING (decision_id)
WHERE NOT r.is_settled ORDER BY d.expires_ms, d.request_id
"""
DUE = " WHEN to_timestamp(d.expires_ms / 1000.0) < now() THEN 'due'"


def upgrade() -> None:
    """Tell those apart whose time is over."""
    op.execute(RESERVATIONS.format(due=DUE))


def downgrade() -> None:
    """Call them open again."""
    op.execute(RESERVATIONS.format(due=""))
