"""The audit views; streams/ledger/audit.py names them for people."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

BUDGET_LEVELS = """
CREATE FUNCTION budget_levels(path text) RETURNS SETOF text
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE ROWS 3 AS $$
    SELECT array_to_string((string_to_array(path, '/'))[1:n], '/')
    FROM generate_series(1, cardinality(string_to_array(path, '/'))) AS n
$$
"""

# The same windows as policy/calendar.py.
WINDOW_START_MS = """
CREATE FUNCTION window_start_ms(time_window text, at_ms bigint) RETURNS bigint
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT CASE time_window
        WHEN 'total' THEN 0
        WHEN 'hour' THEN at_ms - at_ms % 3600000
        WHEN 'day' THEN at_ms - at_ms % 86400000
        WHEN 'week' THEN at_ms - (at_ms + 259200000) % 604800000
        WHEN 'month' THEN (1000 * extract(
            epoch FROM date_trunc('month', to_timestamp(at_ms / 1000) AT TIME ZONE 'UTC')
        ))::bigint
        ELSE at_ms - at_ms % (1000 * rtrim(time_window, 's')::bigint)
    END
$$
"""
WINDOW_END_MS = """
CREATE FUNCTION window_end_ms(time_window text, at_ms bigint) RETURNS bigint
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT CASE time_window
        WHEN 'total' THEN 4102444800000
        WHEN 'month' THEN (1000 * extract(
            epoch FROM date_trunc('month', to_timestamp(at_ms / 1000) AT TIME ZONE 'UTC')
                + interval '1 month'
        ))::bigint
        ELSE window_start_ms(time_window, at_ms) + CASE time_window
            WHEN 'hour' THEN 3600000
            WHEN 'day' THEN 86400000
            WHEN 'week' THEN 604800000
            ELSE 1000 * rtrim(time_window, 's')::bigint
        END
    END
$$
"""

# One row a request: what was booked of each kind, null where nothing was.
REQUESTS = """
CREATE VIEW audit_requests AS
SELECT decision_id,
    max(amount_nanousd) FILTER (WHERE kind = 'reserve') AS reserved_nanousd,
    max(amount_nanousd) FILTER (WHERE kind = 'settle') AS settled_nanousd,
    max(amount_nanousd) FILTER (WHERE kind = 'release') AS released_nanousd,
    max(amount_nanousd) FILTER (WHERE kind = 'overrun') AS overrun_nanousd,
    max(amount_nanousd) FILTER (WHERE kind = 'expire') AS expired_nanousd,
    max(amount_nanousd) FILTER (WHERE kind = 'adjust') AS adjusted_nanousd,
    max(source_offset) FILTER (WHERE kind = 'settle') AS outcome_offset,
    bool_or(kind = 'settle') AS is_settled,
    bool_or(kind = 'expire') AND NOT bool_or(kind = 'settle') AS is_expired
FROM transfers GROUP BY decision_id
"""

# The day is that of the decision, in whose window the money counts.
SPEND = """
CREATE VIEW audit_spend AS
SELECT level AS budget, d.arm,
    (to_timestamp(d.decided_ms / 1000) AT TIME ZONE 'UTC')::date AS day,
    count(*) FILTER (WHERE kind = 'settle') AS requests,
    coalesce(sum(amount_nanousd) FILTER (WHERE kind = 'settle'), 0) AS spent_nanousd,
    coalesce(sum(amount_nanousd) FILTER (WHERE kind = 'overrun'), 0) AS overrun_nanousd,
    sum(amount_nanousd) AS total_nanousd
FROM transfers t JOIN decisions d USING (decision_id),
    LATERAL budget_levels(t.budget) AS level
WHERE kind IN ('settle', 'overrun')
GROUP BY level, d.arm, day ORDER BY level, d.arm, day
"""

BALANCES = """
CREATE VIEW audit_balances AS
SELECT account, split_part(account, ':', 1) AS place,
    substr(account, strpos(account, ':') + 1) AS budget,
    sum(debit) AS debit_nanousd, sum(credit) AS credit_nanousd,
    sum(debit - credit) AS balance_nanousd
FROM (
    SELECT debit_account AS account, amount_nanousd AS debit, 0 AS credit FROM transfers
    UNION ALL
    SELECT credit_account, 0, amount_nanousd FROM transfers
) AS sides
GROUP BY account ORDER BY budget, place
"""

# Per budget: the sum must be zero, no account on its wrong side, and what is reserved must be
# what the decisions reserved that are neither settled nor expired.
TRIAL_BALANCE = """
CREATE VIEW audit_trial_balance AS
WITH open AS (
    SELECT d.budget, sum(d.reserved_nanousd) AS open_nanousd
    FROM decisions d LEFT JOIN audit_requests r USING (decision_id)
    WHERE d.arm IS NOT NULL AND r.is_settled IS NOT TRUE AND r.is_expired IS NOT TRUE
    GROUP BY d.budget
), books AS (
    SELECT budget, sum(balance_nanousd) AS sum_nanousd,
        count(*) FILTER (
            WHERE CASE place WHEN 'available' THEN balance_nanousd > 0 ELSE balance_nanousd < 0 END
        ) AS wrong_sides,
        coalesce(sum(balance_nanousd) FILTER (WHERE place = 'reserved'), 0) AS reserved_nanousd
    FROM audit_balances GROUP BY budget
)
SELECT budget, coalesce(sum_nanousd, 0) AS sum_nanousd, coalesce(wrong_sides, 0) AS wrong_sides,
    coalesce(reserved_nanousd, 0) - coalesce(open_nanousd, 0) AS unexplained_reserved_nanousd
FROM books FULL JOIN open USING (budget) ORDER BY budget
"""

UTILISATION = """
CREATE FUNCTION audit_utilisation(now_ms bigint) RETURNS TABLE (
    budget text, time_window text, window_start timestamptz, limit_nanousd bigint,
    reserved_nanousd numeric, spent_nanousd numeric, expired_nanousd numeric,
    overrun_nanousd numeric, used_share numeric, elapsed_share numeric,
    projected_exhaustion timestamptz
) LANGUAGE sql STABLE AS $$
    WITH limits AS (
        SELECT DISTINCT ON (b.budget) b.budget, b.time_window, b.limit_nanousd,
            window_start_ms(b.time_window, now_ms) AS start_ms,
            window_end_ms(b.time_window, now_ms) AS end_ms
        FROM budget_limits b ORDER BY b.budget, b.catalog_offset DESC
    ), held AS (
        SELECT l.budget,
            sum(r.reserved_nanousd) FILTER (WHERE NOT is_settled AND NOT is_expired) AS reserved,
            sum(r.settled_nanousd) AS spent,
            sum(r.expired_nanousd) FILTER (WHERE is_expired) AS expired,
            sum(r.overrun_nanousd) AS overrun, min(d.decided_ms) AS first_ms
        FROM limits l
            JOIN decisions d ON d.decided_ms >= l.start_ms AND d.decided_ms < l.end_ms
                AND (d.budget = l.budget OR starts_with(d.budget, l.budget || '/'))
            JOIN audit_requests r USING (decision_id)
        GROUP BY l.budget
    ), sums AS (
        SELECT l.*, coalesce(reserved, 0) AS reserved, coalesce(spent, 0) AS spent,
            coalesce(expired, 0) AS expired, coalesce(overrun, 0) AS overrun,
            coalesce(spent, 0) + coalesce(expired, 0) + coalesce(overrun, 0) AS gone,
            -- A total has no meaningful start; it is measured from its first decision.
            CASE l.time_window WHEN 'total' THEN first_ms ELSE start_ms END AS from_ms
        FROM limits l LEFT JOIN held USING (budget) WHERE l.limit_nanousd IS NOT NULL
    )
    SELECT s.budget, s.time_window, to_timestamp(start_ms / 1000.0), s.limit_nanousd,
        reserved, spent, expired, overrun,
        round((reserved + gone) / NULLIF(s.limit_nanousd, 0), 6),
        round((now_ms - start_ms)::numeric / (end_ms - start_ms), 6),
        CASE WHEN gone > 0 AND now_ms > from_ms AND (
            now_ms + (now_ms - from_ms) * (s.limit_nanousd - gone) / gone < end_ms
        ) THEN to_timestamp(
            (now_ms + (now_ms - from_ms) * GREATEST(s.limit_nanousd - gone, 0) / gone) / 1000.0
        ) END
    FROM sums s ORDER BY s.budget
$$
"""

# Reservations and releases in the order in which the worker's state took them: a decision had
# seen the outcomes before outcomes_seen, so a release stands before the decisions that had seen
# its outcome. Settling and expiring do not change what a budget holds.
CAPS = """
CREATE VIEW audit_caps AS
WITH moves AS (
    SELECT d.partition, d.request_id, d.arm, d.budget, d.decided_ms, d.catalog_seen, t.kind,
        CASE t.kind WHEN 'reserve' THEN t.amount_nanousd ELSE -t.amount_nanousd END AS delta,
        t.kind = 'release' AND t.source_offset >= d.outcomes_seen AS is_later,
        d.outcomes_seen, d.decision_offset, t.source_offset
    FROM transfers t JOIN decisions d USING (decision_id)
    WHERE t.kind IN ('reserve', 'release')
), placed AS (
    SELECT *, CASE WHEN is_later THEN source_offset + 1 ELSE outcomes_seen END AS seen,
        CASE WHEN is_later THEN source_offset ELSE decision_offset END AS record_offset
    FROM moves
), levelled AS (
    SELECT p.*, level, l.limit_nanousd, l.time_window,
        window_start_ms(l.time_window, p.decided_ms) AS start_ms
    FROM placed p, LATERAL budget_levels(p.budget) AS level, LATERAL (
        SELECT b.limit_nanousd, b.time_window FROM budget_limits b
        WHERE b.budget = level AND b.catalog_offset < p.catalog_seen
        ORDER BY b.catalog_offset DESC LIMIT 1
    ) AS l
    WHERE l.limit_nanousd IS NOT NULL
), running AS (
    SELECT *, sum(delta) OVER (
        PARTITION BY level, time_window, start_ms
        ORDER BY partition, seen, NOT is_later, record_offset, kind = 'release'
        ROWS UNBOUNDED PRECEDING
    ) AS held_nanousd
    FROM levelled
)
SELECT level AS budget, time_window, to_timestamp(start_ms / 1000.0) AS window_start,
    limit_nanousd, held_nanousd, held_nanousd - limit_nanousd AS over_nanousd,
    request_id, arm, to_timestamp(decided_ms / 1000.0) AS decided_at
FROM running WHERE kind = 'reserve' AND held_nanousd > limit_nanousd
ORDER BY budget, start_ms, partition, decision_offset
"""
CREATED = (
    BUDGET_LEVELS,
    WINDOW_START_MS,
    WINDOW_END_MS,
    REQUESTS,
    SPEND,
    BALANCES,
    TRIAL_BALANCE,
    UTILISATION,
    CAPS,
)
DROPPED = (
    "VIEW audit_caps",
    "FUNCTION audit_utilisation(bigint)",
    "VIEW audit_trial_balance",
    "VIEW audit_balances",
    "VIEW audit_spend",
    "VIEW audit_requests",
    "FUNCTION window_end_ms(text, bigint)",
    "FUNCTION window_start_ms(text, bigint)",
    "FUNCTION budget_levels(text)",
)


def upgrade() -> None:
    """Create the views of money: spend, balances, utilisation and caps."""
    for statement in CREATED:
        op.execute(statement)


def downgrade() -> None:
    """Drop them."""
    for name in DROPPED:
        op.execute(f"DROP {name}")
