"""The records of every topic, strictly decoded; the one place that knows their JSON.

Each struct is one schema version (``v``). A record of this version with an unknown field is
refused, because a misspelt ``max_output_tokens`` must not become a silent default. A record of a
newer version keeps its unknown fields: what this version knows is read, the rest is left alone.
Records are read with :func:`decode`, which raises :class:`BadRecordError` with a short reason.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, cast

import msgspec
from msgspec import NODEFAULT, Meta, Struct
from msgspec.structs import FieldInfo

from policy.money import AMOUNT_MAX, BILL_MAX, INT64_MAX, PRICE_MAX, TOKENS_MAX
from streams.newer import known_part

R = TypeVar("R", bound=Struct)

SCHEMA = 1
RECORD_BYTES_MAX = 1 << 18
"""A record larger than this is refused undecoded; a prompt that long belongs in a store."""

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


class BadRecordError(Exception):
    """A record cannot be accepted. ``reason`` is one word for counting, ``detail`` says what."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class Record(Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """What every record has: its schema version."""

    v: Annotated[int, Meta(ge=1, le=1_000)] = SCHEMA


class Request(Record):
    """A call that somebody wants made. Topic ``requests``, keyed by the root of ``budget``.

    Exactly one of ``prompt``, ``features`` (numbers) and ``features_b64`` (base64 of little-endian
    float32) is given. ``arms`` and ``capabilities`` restrict what may be chosen; a request that
    is read after ``deadline_ms`` is rejected.
    """

    request_id: Identifier
    budget: BudgetPath
    input_tokens: Tokens
    max_output_tokens: Tokens
    prompt: str | None = None
    features: list[float] | None = None
    features_b64: str | None = None
    arms: list[ArmId] | None = None
    capabilities: list[Identifier] = []
    latency_ms_max: Annotated[int, Meta(ge=1, le=INT64_MAX)] | None = None
    deadline_ms: EpochMs | None = None
    segment: Identifier = "all"


class PriceTag(Struct, frozen=True, forbid_unknown_fields=True, gc=False, omit_defaults=True):
    """The price version that a decision pins: micro-dollars per million tokens."""

    version: int
    input: MicroUsdPerMTok
    output: MicroUsdPerMTok
    cached: MicroUsdPerMTok | None = None


class Candidate(NamedTuple):
    """One arm as a decision saw it; the fields are those of :class:`Candidates`."""

    arm: str
    reward: float
    cost_nanousd: int
    bound_nanousd: int
    score: float | None
    why_not: str


class Candidates(Struct, frozen=True, gc=False):
    """The arms as the decision saw them, in columns: the same place of each list is one arm.

    ``reward`` is the estimate in [0, 1], ``cost_nanousd`` the expected cost, ``bound_nanousd``
    what would have been reserved, ``score`` what was compared (none for an arm that was not
    eligible), ``why_not`` one word, empty for the chosen arm.
    """

    arm: list[str] = []
    reward: list[float] = []
    cost_nanousd: list[int] = []
    bound_nanousd: list[int] = []
    score: list[float | None] = []
    why_not: list[str] = []

    def __post_init__(self) -> None:
        """Refuse columns of different lengths with a ``ValueError``."""
        if {len(getattr(self, name)) for name in self.__struct_fields__} != {len(self.arm)}:
            raise ValueError("candidates must have columns of one length")

    def __len__(self) -> int:
        return len(self.arm)

    def __iter__(self) -> Iterator[Candidate]:
        columns = (getattr(self, name) for name in self.__struct_fields__)
        return map(Candidate, *columns)

    @classmethod
    def of(cls, candidates: Iterable[Candidate]) -> Candidates:
        """Return the columns of these arms."""
        return cls(*map(list, zip(*candidates, strict=True)))


class BudgetPosition(Struct, array_like=True, gc=False):
    """One budget of the path just after the decision: path, window start, limit, reserved,
    settled, dual price (reward per dollar), and the dollars per request that the pacer foretold.
    ``reserved + settled <= limit`` holds wherever the decision reserved something.
    """

    budget: str
    window_start_ms: int
    limit_nanousd: int
    reserved_nanousd: int
    settled_nanousd: int
    dual_price: float
    planned_usd: float


class Seen(Struct, gc=False):
    """What the state had seen when it decided; with the topics this makes a replay exact.

    ``request`` is this request's own offset; ``batch`` is the offset of the first request that
    was decided in the same call; the others are the next offsets that were not applied yet, of
    the ``decisions`` before the call. ``curve`` is the position in the decisions at which the
    spend curve was made that the pacers read; -1 without one.
    """

    request: int
    batch: int
    outcomes: int
    catalog: int
    statistics: int
    decisions: int = -1
    curve: int = -1


class Waiting(Struct, gc=False):
    """Requests that took part in a call without being decided: they wait for money in flight.

    ``before`` is how many waited before the call; requests from offset ``fresh`` on were new in
    it; ``tried`` are the offsets of those that were ranked with the others, and wait on.
    """

    before: int
    fresh: int
    tried: list[int]


class Decision(Record):
    """What was decided for a request. Topic ``decisions``, same key and partition as the request.

    Either ``arm`` is set, or ``rejected`` with one word of reason. ``max_output_tokens`` is the
    output cap that the caller must pass to the model: the reservation is its upper bound.
    ``waiting`` is in the first decision of a call only.
    """

    decision_id: str
    request_id: str
    budget: str
    decided_ms: int
    offsets: Seen
    arm: str | None = None
    rejected: str | None = None
    input_tokens: int = 0
    max_output_tokens: int = 0
    reserved_nanousd: int = 0
    expires_ms: int = 0
    price: PriceTag | None = None
    reward: float = 0.0
    cost_nanousd: int = 0
    propensity: float = 0.0
    explored: bool = False
    segment: str = "all"
    policy: str = ""
    features: str = ""
    seed: int = 0
    candidates: Candidates = Candidates()
    budgets: list[BudgetPosition] = []
    waiting: Waiting | None = None


class Usage(Struct, forbid_unknown_fields=True, gc=False, omit_defaults=True):
    """Tokens as OpenAI-compatible endpoints report them; cached are part of the prompt's."""

    prompt_tokens: Tokens
    completion_tokens: Tokens
    cached_tokens: Tokens = 0


class Outcome(Record):
    """What became of a call. Topic ``outcomes``, keyed like its request.

    ``usage`` (or ``cost_nanousd``, the amount on the provider's bill, which counts first) settles
    the reservation; ``reward`` teaches. They may come in one record or in two, in either order,
    and the first of each counts. An ``error`` alone settles nothing: say ``usage`` zero if the
    failed call was free. A reward that only compares says ``against`` which arm's answer: 1 for
    the better one, 0 for the worse, 0.5 for alike.
    """

    request_id: Identifier
    decision_id: Identifier | None = None
    usage: Usage | None = None
    cost_nanousd: Annotated[int, Meta(ge=0, le=BILL_MAX)] | None = None
    reward: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None
    against: ArmId | None = None
    latency_ms: Annotated[int, Meta(ge=0, le=86_400_000)] | None = None
    error: Text | None = None


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
    counts under ``other``.
    """

    policy: Identifier = "pareto"
    dimensions: Annotated[int, Meta(ge=1, le=1_024)] = 64
    encoder: Annotated[str, Meta(pattern=ENCODER)] = "lexical"
    seed: Annotated[int, Meta(ge=0, le=INT64_MAX)] = 0
    options: dict[str, float | int | str | bool] = {}
    segments: Annotated[list[Identifier], Meta(max_length=256)] = []


CatalogEntry = ArmEntry | PriceEntry | BudgetEntry | PolicyEntry


class Statistics(Record):
    """What one partition has learned of one arm. Topic ``statistics``, key ``partition:arm``."""

    partition: int
    arm: str
    policy: str
    decisions: int
    outcomes: int
    state_b64: str


class DeadLetter(Record):
    """Where an unreadable record lay and why; never its payload. Key: the record's key."""

    topic: str
    partition: int
    offset: int
    reason: str
    detail: str
    sha256: str
    size: int
    at_ms: int


class LedgerHead(Record):
    """A link of the ledger's chain that was committed. Topic ``ledger-heads``, key ``partition``.

    ``sha256`` is the link's hash, the next offsets and line are where it ends. ``signature`` is
    the HMAC-SHA256, by the key that ``key_id`` names, of the fields before it.
    """

    partition: int
    link: int
    sha256: str
    next_decision: int
    next_outcome: int
    next_line: int
    key_id: str
    signature: str


def encode(record: Struct) -> bytes:
    """Return the record as JSON."""
    return _encoder.encode(record)


def decode(kind: type[R], value: bytes | None) -> R:
    """Return the record, or raise :class:`BadRecordError` with the place inside it that is wrong.

    A record whose ``v`` is newer than :data:`SCHEMA` is read without its unknown fields.
    """
    if value is None:
        raise BadRecordError("empty", "the record has no value")
    if len(value) > RECORD_BYTES_MAX:
        raise BadRecordError("too_large", f"{len(value)} bytes, at most {RECORD_BYTES_MAX}")
    try:
        return cast(R, _decoder(kind).decode(value))
    except msgspec.ValidationError as exc:
        newer = _decode_newer(kind, value)
        if newer is not None:
            return newer
        raise BadRecordError(_reason(str(exc)), str(exc)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise BadRecordError("undecodable", str(exc)) from None


def _reason(message: str) -> str:
    if "unknown field" in message:
        return "unknown_field"
    if "missing required field" in message:
        return "missing_field"
    return "wrong_type" if message.startswith("Expected `") and ", got" in message else "range"


def _decode_newer(kind: type[R], value: bytes) -> R | None:
    """Return the record of a newer schema without its unknown fields; None if it is not one."""
    try:
        raw = msgspec.json.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if not isinstance(raw, dict) or type(raw.get("v")) is not int or raw["v"] <= SCHEMA:
        return None
    try:
        return msgspec.convert(known_part(kind, raw), kind, strict=True)
    except msgspec.ValidationError as exc:
        raise BadRecordError(_reason(str(exc)), str(exc)) from None


def fields_of(kind: type[Struct], type_of: Callable[[FieldInfo], Any]) -> list[Any]:
    """Return the fields of a kind as :func:`msgspec.defstruct` takes them, of other types."""
    found: list[Any] = []
    for field in msgspec.structs.fields(kind):
        typed = field.name, type_of(field)
        if field.required:
            found.append(typed)
        elif field.default is not NODEFAULT:
            found.append((*typed, field.default))
        else:
            found.append((*typed, msgspec.field(default_factory=field.default_factory)))
    return found


def decode_catalog(value: bytes | None) -> CatalogEntry:
    """Return the catalog entry; raise :class:`BadRecordError` if it is none."""
    return decode(CatalogEntry, value)  # type: ignore[arg-type]


@functools.cache
def _decoder(kind: Any) -> Any:
    return msgspec.json.Decoder(kind)


def request_digest(root: str, request_id: str) -> bytes:
    """Return 16 bytes that name a request of this budget root."""
    return hashlib.blake2b(f"{root}/{request_id}".encode(), digest_size=16).digest()


def request_digests(roots: Sequence[str], request_ids: Sequence[str]) -> list[bytes]:
    """Return :func:`request_digest` of several requests."""
    blake2b = hashlib.blake2b
    named = zip(roots, request_ids, strict=True)
    return [blake2b(f"{root}/{id_}".encode(), digest_size=16).digest() for root, id_ in named]


def decision_id(root: str, request_id: str) -> str:
    """Return the decision's id: the request's, hashed together with its budget root.

    Examples
    --------
    >>> decision_id("acme", "r1") == decision_id("acme", "r1") != decision_id("other", "r1")
    True
    """
    return request_digest(root, request_id).hex()


_encoder = msgspec.json.Encoder()
