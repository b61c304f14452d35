"""The commands of ``tollway``, a module for each group; each has ``register(app)``."""
