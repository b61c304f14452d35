"""Benchmarks: each compares with something measured in the same run, round by round in turn."""
