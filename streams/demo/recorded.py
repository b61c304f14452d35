"""The recorded data that ship with the package; where they are from stands beside them."""

from __future__ import annotations

import gzip
from importlib.resources import as_file, files

import numpy as np

from policy.terms import Floats
from streams.replay.data import Recorded, read


def read_zeroeval() -> Recorded:
    """Return 2,840 prompts answered by every one of 27 models."""
    with as_file(files("streams") / "data" / "zeroeval.npz") as path:
        return read(path)


def read_arrivals_s() -> Floats:
    """Return the seconds at which 19,366 real requests arrived, ascending from 0."""
    compressed = (files("streams") / "data" / "azure_arrivals.csv.gz").read_bytes()
    lines = gzip.decompress(compressed).decode().splitlines()[1:]
    arrivals: Floats = np.array([float(line.partition(",")[0]) for line in lines])
    arrivals -= arrivals[0]
    return arrivals
