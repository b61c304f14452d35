"""``tollway encoder``: encoders of prompts, refitted on own traffic or brought along."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from streams.commands.common import config_of, fail
from streams.encoders import Encoder, EncoderError, Encoders

PROMPTS_MAX = 20_000


def register(app: typer.Typer) -> None:
    """Add ``encoder``."""
    group = typer.Typer(no_args_is_help=True, help="Encoders of prompts, by version.")
    app.add_typer(group, name="encoder")

    @group.command()
    def fit(
        ctx: typer.Context,
        prompts: Annotated[
            Path, typer.Argument(help="Prompts: lines of text, or .jsonl with the field prompt.")
        ],
        dimensions: Annotated[int, typer.Option(min=1, max=1_024)] = 64,
    ) -> None:
        """Fit the lexical encoder on own prompts; a few hundred are enough."""
        from policy import lexical

        folder = config_of(ctx).encoders
        try:
            encoder = lexical.fit([*_prompts(prompts)][:PROMPTS_MAX], dimensions=dimensions)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{encoder.version}.npz").write_bytes(encoder.dumps())
        except (OSError, ValueError) as exc:
            fail(f"{prompts}: {exc}")
        _tell(encoder)

    @group.command()
    def add(
        ctx: typer.Context,
        path: Annotated[
            Path, typer.Argument(help="A fitted .npz, or a folder of model2vec or "
                                 "sentence-transformers.")
        ],
    ) -> None:  # fmt: skip
        """Copy an encoder into the folder of encoders, under its version."""
        try:
            encoder = Encoders(config_of(ctx).encoders).add(path)
        except (OSError, EncoderError) as exc:
            fail(str(exc))
        _tell(encoder)


def _prompts(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if path.suffix != ".jsonl":
                yield line
                continue
            record = json.loads(line)
            prompt = record.get("prompt") if isinstance(record, dict) else None
            if not isinstance(prompt, str):
                raise ValueError(f"line {number} has no prompt")  # noqa: TRY004
            yield prompt


def _tell(encoder: Encoder) -> None:
    typer.echo(
        f"{encoder.version}: {encoder.dimensions} features. Every worker needs it in its "
        f'TOLLWAY_ENCODERS; then in the catalog: encoder = "{encoder.version}"'
    )
