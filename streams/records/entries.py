"""The entries of the catalog: arms, prices, budgets and the policy."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from policy.money import INT64_MAX
from streams.records.fields import (
    ArmId,
    BudgetPath,
    Identifier,
    MicroUsdPerMTok,
    NanoUsd,
    Record,
    Tokens,
    Window,
)


class ArmEntry(Record, tag_field="kind", tag="arm"):
    """An arm may be chosen while ``deployed`` and priced. Key ``arm:<arm>``."""

    arm: ArmId
    deployed: bool = True
    capabilities: list[Identifier] = []
    context_tokens_max: Tokens | None = None
    prior_reward: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None
    prior_output_tokens: Tokens | None = None
    explore: Annotated[int, Meta(ge=0, le=10_000)] = 20


class PriceEntry(Record, tag_field="kind", tag="price"):
    """The current price of an arm, micro-dollars per million tokens. Key ``price:<arm>``."""

    arm: ArmId
    version: Annotated[int, Meta(ge=1, le=INT64_MAX)]
    input: MicroUsdPerMTok
    output: MicroUsdPerMTok
    cached: MicroUsdPerMTok | None = None


class BudgetEntry(Record, tag_field="kind", tag="budget"):
    """A limit for a window, and how it is paced. Key ``budget:<path>``.

    ``window`` is a calendar window in UTC, ``total``, or a number of seconds such as ``90s``,
    aligned to the epoch. ``per_request_nanousd`` paces the mean cost of a request instead of the
    clock. ``pacing`` ``none`` leaves the hard cap only.
    """

    budget: BudgetPath
    limit_nanousd: NanoUsd
    window: Window = "day"
    per_request_nanousd: NanoUsd | None = None
    pacing: Literal["even", "pid", "none"] = "even"


ENCODER = r"^(none|lexical|(lexical|model2vec|sentence-transformers)-[0-9a-f]{12})$"
"""No features of prompts, the shipped encoder, or another one by its version."""


class PolicyEntry(Record, tag_field="kind", tag="policy"):
    """Which policy decides, and how requests become features. Key ``policy``.

    Reward windows are kept by arm for each of the ``segments``; a request of another segment
    counts under ``other``. With a ``segment_weight`` the segments are features, too, besides the
    ``dimensions`` that come from a prompt or vector: a column for each, which holds this number for
    its requests and 0 for others. The usual length of a vector suits: 0.7 for ``lexical``.
    """

    policy: Identifier = "pareto"
    dimensions: Annotated[int, Meta(ge=1, le=1_024)] = 64
    encoder: Annotated[str, Meta(pattern=ENCODER)] = "lexical"
    seed: Annotated[int, Meta(ge=0, le=INT64_MAX)] = 0
    options: dict[str, float | int | str | bool] = {}
    segments: Annotated[list[Identifier], Meta(max_length=256)] = []
    segment_weight: Annotated[float, Meta(ge=0.0, le=1_000.0)] = 0.0


CatalogEntry = ArmEntry | PriceEntry | BudgetEntry | PolicyEntry
