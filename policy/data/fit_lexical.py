"""Fit the shipped encoder: ``python -m policy.data.fit_lexical OUT.npz PROMPTS.parquet...``.

Needs ``pyarrow``, which Tollway itself does not depend on.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow.parquet as pq

from policy.lexical import fit


def main(out: str, *sources: str) -> None:
    """Fit on the column ``prompt`` of every source and write the numbers to ``out``."""
    prompts: list[str] = []
    for source in sources:
        prompts += pq.read_table(source, columns=["prompt"])["prompt"].to_pylist()
    encoder = fit(prompts)
    Path(out).write_bytes(encoder.dumps())
    print(f"{encoder.version}: {encoder.dimensions} features from {len(prompts)} prompts")


if __name__ == "__main__":
    main(*sys.argv[1:])
