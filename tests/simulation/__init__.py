"""The real core and shell over a simulated broker, database and clock; see ``run.py``."""
