"""Everything that one partition knows: budgets, reservations, windows, and what was learned.

One owner, one partition, one thread. ``policy.decide`` and ``policy.settle`` change it record by
record; ``policy.recover`` brings it back after a kill.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from policy.arm_columns import ArmColumns
from policy.budgets import Budgets
from policy.catalog import Catalog
from policy.curve import SpendCurve, spend_curve
from policy.lengths import OutputLengths
from policy.money import Price
from policy.outcomes import Arrival
from policy.pages import LEARNED, Gate, PageKey, Position
from policy.requests import Incoming
from policy.reservations import Reservations
from policy.terms import (
    BatchPolicy,
    Bools,
    Contexts,
    Floats,
    Ints,
    Policy,
    Settings,
    SpansArms,
)
from policy.windows import RewardWindows

RING = 256
"""Contexts of which the spend curve is made."""
CURVE_EVERY, CURVE_EVERY_MOST = 64, 512
"""Decisions after which the spend curve is made anew: an eighth of all so far, between these."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Numbers of one deployment that the core is given."""

    reservation_ttl_ms: int = 600_000
    defer_ms: int = 30_000
    deferred_max: int = 10_000
    parked_max: int = 10_000


class State:
    """The state of one partition; see the module."""

    def __init__(
        self,
        *,
        dimensions: int,
        make_policy: Callable[[Settings], Policy],
        catalog: Catalog,
        limits: Limits | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self.dimensions = dimensions
        self.gate = Gate.new()
        self.budgets = Budgets(self.gate)
        self.reservations = Reservations(self.gate, self.budgets.paths, dimensions=dimensions + 1)
        self.windows = RewardWindows(self.gate)
        self.lengths: dict[str, OutputLengths] = {}
        self.policy = make_policy(catalog.settings)
        self.batch_policy: BatchPolicy | None = None
        if isinstance(self.policy, BatchPolicy) and self.policy.in_batches:
            self.batch_policy = self.policy
        self._spans_arms = isinstance(self.policy, SpansArms)
        self.deferred: dict[str, deque[Incoming]] = {}
        self.waiting: dict[bytes, int] = {}
        self.freed: set[str] = set()
        self.parked: dict[int, tuple[Arrival, Position]] = {}
        self.late: list[Arrival] = []
        self.redo: dict[int, list[int]] = {}
        self.unlearned: list[str] = []
        self.statistics = 0
        self.curve: SpendCurve | None = None
        self.curve_at = 0
        self._ring_features = np.zeros((RING, dimensions + 1), np.float32)
        self._ring_tokens = np.zeros((RING, 2), np.int64)
        self._ring_count = 0
        self.set_catalog(catalog)

    def set_catalog(self, catalog: Catalog) -> None:
        """Take a newer catalog; what was learned and spent stays."""
        self.catalog = catalog
        self.budgets.set_catalog(catalog)
        self.policy.set_arms(catalog.arms)
        self.prices: list[Price | None] = [arm.price for arm in catalog.arms]
        self.columns = ArmColumns.of(catalog.arms)
        self.curve = None
        self.freed.update(self.deferred)

    def lengths_of(self, arm: str) -> OutputLengths:
        """Return the output lengths of an arm; empty ones for a new arm."""
        return self.lengths.setdefault(arm, OutputLengths())

    def page_of_arm(self, arm: str) -> PageKey:
        """Return the page that holds what was learned of an arm."""
        return LEARNED if self._spans_arms else ("arm", arm)

    def arms_of(self, pages: Iterable[PageKey]) -> list[str]:
        """Return the arms of which these pages hold what was learned."""
        if LEARNED in (pages := list(pages)):
            return [arm.arm for arm in self.catalog.arms]
        return [str(key) for kind, key in pages if kind == "arm"]

    def free(self, paths: Ints) -> None:
        """Note that money came back on these paths: requests that wait for it are tried again."""
        if self.deferred:
            texts = self.budgets.paths.texts
            self.freed.update(texts[path].rpartition(" ")[2] for path in set(paths.tolist()))

    def remember_contexts(
        self, features: NDArray[np.float32], input_tokens: Ints, max_output_tokens: Ints
    ) -> None:
        """Put contexts, shape (n, d) and (n,), into the ring of which the spend curve is made."""
        if not self.gate.passes(("ring", "")):
            return
        count, last = len(features), slice(-RING, None)
        at = np.arange(self._ring_count, self._ring_count + count)[last] % RING
        self._ring_features[at] = features[last]
        self._ring_tokens[at, 0] = input_tokens[last]
        self._ring_tokens[at, 1] = max_output_tokens[last]
        self._ring_count += count

    def refresh_curve(self, batch: Contexts) -> None:
        """Make the spend curve anew if it is due; of the batch too while the ring is short."""
        position = self.gate.position.decisions
        every = min(max(position // 8, CURVE_EVERY), CURVE_EVERY_MOST)
        if self.curve is not None and position - self.curve_at < every:
            return
        if not self.columns.routable.any():
            return
        kept = min(self._ring_count, RING)
        features: Floats = self._ring_features[:kept].astype(np.float64)
        tokens: Ints = self._ring_tokens[:kept]
        if kept < CURVE_EVERY:
            features = np.concatenate([features, batch.features[:RING]])
            new = np.stack([batch.input_tokens, batch.max_output_tokens], axis=1)[:RING]
            tokens = np.concatenate([tokens, new])
        contexts = Contexts(
            features=features,
            input_tokens=np.ascontiguousarray(tokens[:, 0]),
            max_output_tokens=np.ascontiguousarray(tokens[:, 1]),
            seeds=np.zeros(len(tokens), np.uint64),
        )
        reward, cost_usd, taken = self._foretold(contexts)
        if taken.any():
            self.curve = spend_curve(reward, cost_usd, taken)
            self.curve_at = position

    def _foretold(self, contexts: Contexts) -> tuple[Floats, Floats, Bools]:
        """Return reward and dollars of each arm, and where the policy would take it; (n, k)."""
        routable = self.columns.routable
        eligible = np.ascontiguousarray(np.broadcast_to(routable, (len(contexts), len(routable))))
        if self.batch_policy is not None:
            return *self.batch_policy.estimates(contexts), eligible
        ranking = self.policy.rank(contexts, dual_price=np.zeros(len(contexts)), eligible=eligible)
        return ranking.reward, ranking.cost_usd, eligible & (ranking.score > -np.inf)

    @property
    def clock_ms(self) -> int:
        """Return the latest time of a record that the state contains."""
        return self.gate.position.clock_ms

    def low(self) -> Position:
        """Return where a fold would have to begin if the process ended now."""
        return self.gate.low(position for _, position in self.parked.values())

    def dump_page(self, page: PageKey) -> bytes:
        """Return a page with the position up to which it is complete."""
        kind, key = page
        if kind == "budget":
            data = self.budgets.dump_page(int(key))
        elif kind == "reservation":
            data = self.reservations.dump_page(int(key))
        elif kind == "window":
            data = self.windows.dump_page(str(key))
        elif kind == "arm":
            data = self._dump_arm(str(key))
        elif kind == "learned":
            data = msgspec.msgpack.encode(
                [(arm.arm, self._dump_arm(arm.arm)) for arm in self.catalog.arms]
            )
        else:
            kept = [self._ring_count, self._ring_features.tobytes(), self._ring_tokens.tobytes()]
            data = msgspec.msgpack.encode(kept)
        return msgspec.msgpack.encode([*self.gate.position, data])

    def load_page(self, page: PageKey, value: bytes) -> None:
        """Put a page back and note its position; budget pages in ascending order."""
        kind, key = page
        *position, data = msgspec.msgpack.decode(value)
        self.gate.contained[page] = Position(*position)
        if kind == "budget":
            self.budgets.load_page(int(key), data)
        elif kind == "reservation":
            self.reservations.load_page(int(key), data)
        elif kind == "window":
            self.windows.load_page(str(key), data)
        elif kind == "arm":
            self._load_arm(str(key), data)
        elif kind == "learned":
            for arm, learned in msgspec.msgpack.decode(data):
                self._load_arm(arm, learned)
        else:
            count, features, tokens = msgspec.msgpack.decode(data)
            if len(features) == self._ring_features.nbytes:
                self._ring_count = count
                self._ring_features = np.frombuffer(features, "<f4").reshape(RING, -1).copy()
                self._ring_tokens = np.frombuffer(tokens, "<i8").reshape(RING, 2).copy()

    def _dump_arm(self, arm: str) -> bytes:
        return msgspec.msgpack.encode([self.policy.dump(arm), self.lengths_of(arm).dump()])

    def _load_arm(self, arm: str, data: bytes) -> None:
        policy, lengths = msgspec.msgpack.decode(data)
        self.lengths_of(arm).load(lengths)
        try:
            self.policy.load(arm, policy)
        except ValueError:
            # Learned by another policy, or from other features: it learns anew.
            self.unlearned.append(arm)
