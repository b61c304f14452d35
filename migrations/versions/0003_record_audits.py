"""The audit views that compare bookings with the records that they stem from."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

RESERVATIONS = """
CREATE VIEW audit_reservations AS
SELECT CASE WHEN r.is_expired THEN 'expired' ELSE 'open' END AS state,
    d.budget, d.arm, d.request_id, r.reserved_nanousd,
    to_timestamp(d.decided_ms / 1000.0) AS decided_at,
    to_timestamp(d.expires_ms / 1000.0) AS expires_at
FROM audit_requests r JOIN decisions d USING (decision_id)
WHERE NOT r.is_settled ORDER BY d.expires_ms, d.request_id
"""

OVERRUNS = """
CREATE VIEW audit_overruns AS
SELECT d.budget, d.arm, d.request_id, r.reserved_nanousd, r.overrun_nanousd,
    r.reserved_nanousd + r.overrun_nanousd AS cost_nanousd,
    to_timestamp(d.decided_ms / 1000.0) AS decided_at
FROM audit_requests r JOIN decisions d USING (decision_id)
WHERE r.overrun_nanousd > 0 ORDER BY r.overrun_nanousd DESC, d.request_id
"""

CALL_COST = """
CREATE FUNCTION call_cost_nanousd(
    prompt bigint, completion bigint, cached bigint, input bigint, output bigint, discounted bigint
) RETURNS numeric LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT div(
        (prompt - coalesce(cached, 0))::numeric * input
        + coalesce(cached, 0)::numeric * coalesce(discounted, input)
        + completion::numeric * output + 999, 1000)
$$
"""

# Every amount once more from the records: rows here mean that the books are wrong.
REDERIVED = """
CREATE VIEW audit_rederived AS
WITH derived AS (
    SELECT r.*, d.partition, d.request_id, d.budget, d.arm, d.price_version,
        d.reserved_nanousd AS bound_nanousd,
        o.outcome_offset IS NOT NULL AS has_outcome,
        coalesce(o.billed_nanousd, call_cost_nanousd(
            o.prompt_tokens, o.completion_tokens, o.cached_tokens,
            d.price_input, d.price_output, d.price_cached
        )) AS cost_nanousd,
        EXISTS (SELECT FROM prices p WHERE p.arm = d.arm AND p.version = d.price_version)
        AND NOT EXISTS (
            SELECT FROM prices p WHERE p.arm = d.arm AND p.version = d.price_version
                AND (p.price_input, p.price_output, p.price_cached) IS NOT DISTINCT FROM
                    (d.price_input, d.price_output, d.price_cached)
        ) AS is_mispriced
    FROM audit_requests r
        JOIN decisions d USING (decision_id)
        LEFT JOIN outcomes o USING (partition, decision_id, outcome_offset)
), judged AS (
    SELECT *, CASE
        WHEN reserved_nanousd IS DISTINCT FROM bound_nanousd THEN 'reserve is not the decision''s'
        WHEN expired_nanousd <> reserved_nanousd THEN 'expire is not the reservation'
        WHEN adjusted_nanousd <> expired_nanousd THEN 'adjust is not what expired'
        WHEN adjusted_nanousd IS NOT NULL AND NOT is_settled THEN 'adjusted but not settled'
        WHEN expired_nanousd IS NOT NULL AND is_settled AND adjusted_nanousd IS NULL
            THEN 'settled after expiry without adjustment'
        WHEN is_settled AND NOT has_outcome THEN 'settled without an outcome'
        WHEN settled_nanousd + coalesce(overrun_nanousd, 0) IS DISTINCT FROM cost_nanousd
            AND is_settled THEN 'cost is not usage times the pinned price'
        WHEN settled_nanousd + coalesce(released_nanousd, 0) <> reserved_nanousd
            THEN 'settle and release are not the reservation'
        WHEN is_mispriced THEN 'pinned price is not the catalog''s of that version'
    END AS mismatch
    FROM derived
)
SELECT mismatch, partition, request_id, budget, arm, price_version, reserved_nanousd,
    settled_nanousd, released_nanousd, overrun_nanousd, expired_nanousd, cost_nanousd
FROM judged WHERE mismatch IS NOT NULL ORDER BY partition, request_id
"""

# What the same tokens would have cost at the price that another arm had when it was decided.
SAVINGS = """
CREATE FUNCTION audit_savings(against text) RETURNS TABLE (
    budget text, requests bigint, cost_nanousd numeric, against_nanousd numeric,
    saved_nanousd numeric, saved_share numeric
) LANGUAGE sql STABLE AS $$
    WITH calls AS (
        SELECT d.root, r.settled_nanousd + coalesce(r.overrun_nanousd, 0) AS cost,
            call_cost_nanousd(
                o.prompt_tokens, o.completion_tokens, o.cached_tokens,
                p.price_input, p.price_output, p.price_cached
            ) AS other
        FROM audit_requests r
            JOIN decisions d USING (decision_id)
            JOIN outcomes o USING (partition, decision_id, outcome_offset),
            LATERAL (
                SELECT p.price_input, p.price_output, p.price_cached FROM prices p
                WHERE p.arm = against AND p.catalog_offset < d.catalog_seen
                ORDER BY p.catalog_offset DESC LIMIT 1
            ) AS p
        WHERE o.prompt_tokens IS NOT NULL
    )
    SELECT root, count(*), sum(cost), sum(other), sum(other - cost),
        round(sum(other - cost) / NULLIF(sum(other), 0), 6)
    FROM calls GROUP BY root ORDER BY root
$$
"""

UNMATCHED = """
CREATE VIEW audit_unmatched AS
SELECT coalesce(c.reason, 'no_decision') AS reason, o.partition, o.outcome_offset, o.request_id,
    to_timestamp(o.at_ms / 1000.0) AS at
FROM outcomes o
    LEFT JOIN decisions d USING (partition, decision_id)
    LEFT JOIN (
        SELECT DISTINCT topic, partition, record_offset, reason FROM conflicts
        WHERE part <> 'decision' AND reason IN ('other_decision', 'too_early', 'rejected')
    ) AS c ON c.partition = o.partition AND c.record_offset = o.outcome_offset
WHERE d.decision_id IS NULL OR c.reason IS NOT NULL
ORDER BY o.partition, o.outcome_offset
"""

CONFLICTS = """
CREATE VIEW audit_conflicts AS
SELECT reason, part, topic, partition, record_offset, first_offset, request_id,
    to_timestamp(at_ms / 1000.0) AS at
FROM conflicts WHERE reason NOT IN ('other_decision', 'too_early', 'rejected')
ORDER BY topic, partition, record_offset, part
"""

# Lines are numbered without gaps: next_line is how many there must be.
CURSORS = """
CREATE VIEW audit_cursors AS
SELECT c.topic, c.partition, c.epoch, c.next_offset, c.duplicates, c.holes, c.next_line,
    c.next_line - coalesce(t.lines, 0) AS missing_lines,
    to_timestamp(NULLIF(c.clock_ms, 0) / 1000.0) AS clock,
    to_timestamp(NULLIF(c.swept_ms, 0) / 1000.0) AS expired_to,
    c.halted
FROM cursors c
    LEFT JOIN (
        SELECT partition, count(*) AS lines FROM transfers GROUP BY partition
    ) AS t ON t.partition = c.partition AND c.next_line > 0
ORDER BY c.topic, c.partition
"""

CREATED = (
    RESERVATIONS,
    OVERRUNS,
    CALL_COST,
    REDERIVED,
    SAVINGS,
    UNMATCHED,
    CONFLICTS,
    CURSORS,
)
DROPPED = (
    "VIEW audit_cursors",
    "VIEW audit_conflicts",
    "VIEW audit_unmatched",
    "FUNCTION audit_savings(text)",
    "VIEW audit_rederived",
    "FUNCTION call_cost_nanousd(bigint, bigint, bigint, bigint, bigint, bigint)",
    "VIEW audit_overruns",
    "VIEW audit_reservations",
)


def upgrade() -> None:
    """Create the views of records: reservations, re-derived amounts, savings, what is unmatched."""
    for statement in CREATED:
        op.execute(statement)


def downgrade() -> None:
    """Drop them."""
    for name in DROPPED:
        op.execute(f"DROP {name}")
