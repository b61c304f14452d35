"""Simple policies to compare with, one a file; ``policy.registry`` names them."""
