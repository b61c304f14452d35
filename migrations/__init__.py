"""Alembic migrations of the ledger; :mod:`streams.ledger.migrate` runs them."""
