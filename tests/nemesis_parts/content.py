"""What producers and callers send: requests, outcomes, and records that must be refused."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from streams.topics import OUTCOMES, REQUESTS
from tests.nemesis_parts.world import (
    DIMENSIONS,
    MEAN_COST_NANOUSD,
    PARTITIONS,
    TTL_S,
    Root,
    World,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One record to be sent; ``partition`` is None where its key says it."""

    topic: str
    key: bytes
    value: bytes
    kind: str
    request_id: str
    partition: int | None = None


def encode(fields: Mapping[str, Any]) -> bytes:
    """Return the record as JSON."""
    return json.dumps(fields, separators=(",", ":")).encode()


class Content:
    """Makes the records of one seed; request ``n`` is always the same."""

    def __init__(self, world: World, seed: int) -> None:
        self._world = world
        self._seed = seed
        self._weights = [root.weight for root in world.roots]
        self._rich = [root for root in world.roots if root.kind == "rich"]
        self._kinds = {root.name: root.kind for root in world.roots}
        self._extra = 0

    def is_rich(self, root: str) -> bool:
        """Return whether a root never runs out."""
        return self._kinds.get(root) == "rich"

    def backlog_max(self, root: str) -> float:
        """Return how many requests of a root may be undecided before it is asked for no more.

        What waits for the money of later windows must not take longer than the healing may.
        """
        if self._kinds.get(root) != "window":
            return math.inf
        return 3.0 * self._world.budgets[root][0] / MEAN_COST_NANOUSD

    # -- requests

    def requests(self, number: int) -> Iterator[tuple[float, Item]]:
        """Yield what is sent because of one request, each with its delay in seconds."""
        chance = random.Random(f"{self._seed}/{number}")
        root = chance.choices(self._world.roots, self._weights)[0]
        name = f"n{number}"
        fields = self._fields(chance, name, root)
        if chance.random() < 0.002:
            fields["deadline_ms"] = 1
        item = _request(root, fields, "good")
        yield 0.0, item
        if chance.random() < 0.05:
            yield chance.uniform(0, 10), _request(root, fields, "copy")
        if chance.random() < 0.01:
            other = fields | {"max_output_tokens": fields["max_output_tokens"] + 1}
            yield chance.uniform(0.5, 10), _request(root, other, "conflict")
        if chance.random() < 0.01:
            yield 0.0, self._bad_request(chance, fields | {"request_id": f"bad-{number}"}, root)
        if chance.random() < 0.02 and root.kind == "rich":
            usage = {"prompt_tokens": fields["input_tokens"], "completion_tokens": 1}
            # Before its request or just after it, hardly after its decision.
            yield 0.0, _outcome(root.name, {"request_id": name, "usage": usage}, "good")
        if chance.random() < 0.003:
            unknown = {"request_id": f"nobody-{number}", "reward": 0.5}
            yield chance.random(), _outcome(root.name, unknown, "good")
        if chance.random() < 0.01:
            yield chance.random(), self._bad_outcome(chance, number, root)

    def _fields(self, chance: random.Random, name: str, root: Root) -> dict[str, Any]:
        return {
            "request_id": name,
            "budget": chance.choice(root.leaves),
            "input_tokens": chance.randint(20, 400),
            "max_output_tokens": chance.randint(50, 600),
            "features": [round(chance.gauss(0, 1), 3) for _ in range(DIMENSIONS)],
        }

    def _bad_request(self, chance: random.Random, fields: dict[str, Any], root: Root) -> Item:
        changes: dict[str, dict[str, Any]] = {
            "unknown_field": {"max_ouput_tokens": 10},
            "unknown_budget": {"budget": f"{root.name}/nobody"},
            "unknown_arm": {"arms": ["gpt-17"]},
            "feature_length": {"features": fields["features"][:-1]},
            "features": {"features_b64": ""},
            "wrong_type": {"input_tokens": "many"},
            "range": {"input_tokens": -1},
        }
        reason = chance.choice(["undecodable", "wrong_key", "wrong_partition", *changes])
        value, key, partition = encode(fields | changes.get(reason, {})), root.key, None
        if reason == "undecodable":
            value = value[: chance.randrange(1, len(value))] + b"\xff"
        elif reason == "wrong_key":
            key = b"somebody-else"
        elif reason == "wrong_partition":
            partition = (root.partition + 1) % PARTITIONS
        return Item(
            topic=REQUESTS, key=key, value=value, kind=f"poison:{reason}",
            request_id=fields["request_id"], partition=partition,
        )  # fmt: skip

    def probe(self, topic: str, partition: int) -> Item:
        """Return a record that is refused: its dead letter tells that all before it is done."""
        self._extra += 1
        root = next(r for r in self._world.roots if r.partition == partition)
        return Item(
            topic=topic, key=root.key, value=b"probe %d" % self._extra, kind="poison:undecodable",
            request_id=f"probe-{self._extra}",
        )  # fmt: skip

    # -- outcomes

    def _bad_outcome(self, chance: random.Random, number: int, root: Root) -> Item:
        name = f"n{number}"
        values: dict[str, dict[str, Any]] = {
            "range": {"request_id": name, "reward": 1.5},
            "empty_outcome": {"request_id": name, "latency_ms": 1},
            "missing_field": {"reward": 0.5},
            "wrong_type": {"request_id": name, "reward": "good"},
            "unknown_field": {"request_id": name, "rewards": 1.0},
            "other_decision": {"request_id": name, "decision_id": "0" * 32, "reward": 0.1},
            "wrong_partition": {"request_id": name, "reward": 0.2},
        }
        reason = chance.choice(["undecodable", *values])
        # A latency that nobody else has makes the bytes, by which it is found again, its own.
        value = encode(values.get(reason, {"request_id": name}) | {"latency_ms": number})
        if reason == "undecodable":
            value = value[:-1]
        partition = (root.partition + 1) % PARTITIONS if reason == "wrong_partition" else None
        return Item(
            topic=OUTCOMES, key=root.key, value=value, kind=f"poison:{reason}",
            request_id=f"bad-{name}", partition=partition,
        )  # fmt: skip

    def outcomes(self, decision: Any) -> Iterator[tuple[float, Item]]:
        """Yield what the caller of a decision reports, each with its delay in seconds."""
        chance = random.Random(f"{self._seed}/call/{decision.decision_id}")
        root = decision.budget.partition("/")[0]
        name = decision.request_id
        if decision.arm is None:
            if chance.random() < 0.02:
                yield 0.1, _outcome(root, {"request_id": name, "reward": 0.5}, "good")
            return
        usage = {
            "prompt_tokens": decision.input_tokens,
            "completion_tokens": int(decision.max_output_tokens * chance.random() ** 2),
        }
        if self.is_rich(root) and chance.random() < 0.01:
            usage["completion_tokens"] = decision.max_output_tokens + 100
        if chance.random() < 0.2:
            usage["cached_tokens"] = usage["prompt_tokens"] // 2
        bill = {}
        if chance.random() < 0.03:
            bill = {"cost_nanousd": int(decision.reserved_nanousd * chance.random())}
        reward = {"reward": round(chance.random(), 2)}
        ended = {"request_id": name, "usage": usage, "latency_ms": chance.randint(50, 5_000)}
        end_s, kind = chance.expovariate(2.0), chance.random()
        whole = _outcome(root, ended | reward | bill, "good")
        if kind < 0.05:
            return  # never: its reservation expires as spent
        if kind < 0.09:
            yield TTL_S + chance.uniform(1, 8), whole
        elif kind < 0.19:
            apart = _outcome(root, {"request_id": name} | reward, "good")
            yield end_s, _outcome(root, ended | bill, "good")
            yield end_s + chance.uniform(-0.5, 5), apart
        elif kind < 0.22:
            failed = {"request_id": name, "usage": usage, "error": "it failed"}
            yield end_s, _outcome(root, failed, "good")
        else:
            yield end_s, whole
        if chance.random() < 0.08:
            yield end_s + chance.uniform(0, 8), _outcome(root, ended | reward | bill, "copy")
        if chance.random() < 0.04:
            less = usage | {"completion_tokens": max(usage["completion_tokens"] - 1, 0)}
            if less == usage:
                less = usage | {"prompt_tokens": max(usage["prompt_tokens"] - 1, 0)}
            more = _outcome(root, ended | {"usage": less} | bill, "conflict")
            yield end_s + chance.uniform(0, 8), more
        if chance.random() < 0.02:
            worse = {"reward": round(1 - reward["reward"], 3)}
            yield (
                end_s + chance.uniform(0, 8),
                _outcome(root, {"request_id": name} | worse, "conflict"),
            )


def _request(root: Root, fields: dict[str, Any], kind: str) -> Item:
    return Item(
        topic=REQUESTS, key=root.key, value=encode(fields), kind=kind,
        request_id=fields["request_id"],
    )  # fmt: skip


def _outcome(root: str, fields: dict[str, Any], kind: str) -> Item:
    return Item(
        topic=OUTCOMES, key=root.encode(), value=encode(fields), kind=kind,
        request_id=fields["request_id"],
    )  # fmt: skip
