"""The Postgres ledger: schema, the sink that fills it, audits, and proof against the topics."""
