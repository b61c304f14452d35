"""Planted bugs, and what runs the tests against them."""
