"""The shell around ``policy``: Kafka, Postgres, the clock and the command line."""
