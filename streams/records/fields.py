"""The types of fields with their ranges, and what every record has."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from policy.money import AMOUNT_MAX, PRICE_MAX, TOKENS_MAX

SCHEMA = 1
IDENTIFIER_PATTERN = r"[A-Za-z0-9_.@:+-]{1,96}"
BUDGET_PATTERN = rf"{IDENTIFIER_PATTERN}(/{IDENTIFIER_PATTERN}){{0,5}}"
BUDGET_LENGTH_MAX = 400
Identifier = Annotated[str, Meta(pattern=rf"\A{IDENTIFIER_PATTERN}\Z")]
ArmId = Annotated[
    str, Meta(pattern=rf"\A{IDENTIFIER_PATTERN}(/{IDENTIFIER_PATTERN})?\Z", max_length=128)
]
BudgetPath = Annotated[str, Meta(pattern=rf"\A{BUDGET_PATTERN}\Z", max_length=BUDGET_LENGTH_MAX)]
Tokens = Annotated[int, Meta(ge=0, le=TOKENS_MAX)]
NanoUsd = Annotated[int, Meta(ge=0, le=AMOUNT_MAX)]
EpochMs = Annotated[int, Meta(ge=0, le=4_102_444_800_000)]
MicroUsdPerMTok = Annotated[int, Meta(ge=0, le=PRICE_MAX)]
Text = Annotated[str, Meta(max_length=2_000)]
Window = Annotated[str, Meta(pattern=r"\A(hour|day|week|month|total|[1-9][0-9]{0,8}s)\Z")]


class Record(Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """What every record has: its schema version."""

    v: Annotated[int, Meta(ge=1, le=1_000)] = SCHEMA
