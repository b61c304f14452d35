"""The records of one call: its request, the decision, and its outcomes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, NamedTuple

from msgspec import Meta, Struct

from policy.money import BILL_MAX, INT64_MAX
from streams.records.fields import (
    ArmId,
    BudgetPath,
    EpochMs,
    Identifier,
    MicroUsdPerMTok,
    Record,
    Text,
    Tokens,
)


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
        # Spelt out: every reader of a decision comes by here.
        alike = (
            len(self.arm)
            == len(self.reward)
            == len(self.cost_nanousd)
            == len(self.bound_nanousd)
            == len(self.score)
            == len(self.why_not)
        )
        if not alike:
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
