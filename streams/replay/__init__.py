"""Replays of recorded data: the worker's own core, without Kafka, and how well it did."""
