"""Logged decisions with their outcomes, read from a file for off-policy evaluation.

``.jsonl`` holds records as they lie on the topics or as ``tollway tail --json`` prints them, one a
line and in any order between kinds: decisions and outcomes, and if they are to be used requests
(for features) and catalog entries (for prices). ``.npz`` holds arrays, see :func:`read_npz`.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from policy.money import NANO_PER_USD, Price, call_cost_nanousd
from policy.offpolicy import Log
from policy.terms import Arm, Floats
from streams.records import (
    ArmEntry,
    BadRecordError,
    Decision,
    Outcome,
    PriceEntry,
    PriceTag,
    Request,
    decode,
    decode_catalog,
)

Encode = Callable[[str, Sequence[str]], Floats]
"""Makes features of prompts by an encoder's version, as decisions name it."""


class LogError(Exception):
    """A log of decisions cannot be read."""


@dataclass(slots=True, eq=False)
class _Records:
    """What was read so far; the first decision of a request counts, and the first of each part."""

    decisions: dict[str, Decision] = field(default_factory=dict)
    requests: dict[str, Request] = field(default_factory=dict)
    paid: dict[str, Outcome] = field(default_factory=dict)
    rewards: dict[str, float] = field(default_factory=dict)
    arms: dict[str, ArmEntry] = field(default_factory=dict)
    prices: dict[str, Price] = field(default_factory=dict)

    def add(self, line: bytes) -> None:
        raw = msgspec.json.decode(line)
        if not isinstance(raw, dict):
            raise LogError("a line must be a JSON object")
        if "record" in raw and "topic" in raw:
            raw = raw["record"]
            if raw is None:
                return  # Retires an entry of the catalog; what was decided before stays priced.
            if not isinstance(raw, dict):
                raise LogError("its record is no JSON object")
            line = msgspec.json.encode(raw)
        if "kind" in raw:
            entry = decode_catalog(line)
            if isinstance(entry, ArmEntry):
                self.arms[entry.arm] = entry
            elif isinstance(entry, PriceEntry):
                self.prices[entry.arm] = _price(entry)
        elif "decided_ms" in raw:
            decision = decode(Decision, line)
            self.decisions.setdefault(decision.decision_id, decision)
        elif "budget" in raw:
            request = decode(Request, line)
            self.requests.setdefault(_key(request.budget, request.request_id), request)
        else:
            outcome = decode(Outcome, line)
            name = outcome.decision_id or outcome.request_id
            if outcome.usage is not None or outcome.cost_nanousd is not None:
                self.paid.setdefault(name, outcome)
            if outcome.reward is not None:
                self.rewards.setdefault(name, outcome.reward)


def _price(tag: PriceTag | PriceEntry) -> Price:
    return Price(version=tag.version, input=tag.input, output=tag.output, cached=tag.cached)


def _key(budget: str, request_id: str) -> str:
    return f"{budget.partition('/')[0]}/{request_id}"


def read_log(path: Path, *, encode: Encode | None = None) -> tuple[Log, int]:
    """Return the log of a file, and how many decisions had to be left out.

    Left out are rejections, and decisions for an arm that the policy would not have put first:
    these were forced by a cap, and nothing is known of how likely they were.

    Raises
    ------
    LogError
        If the file cannot be read; the message names the line or the array.
    """
    try:
        if path.suffix == ".npz":
            return read_npz(path)
        with path.open("rb") as lines:
            return read_jsonl(lines, encode=encode)
    except OSError as exc:
        raise LogError(f"{path}: {exc.strerror or exc}") from exc
    except (ValueError, TypeError, LookupError, OverflowError, SystemError) as exc:
        # Arrays of other types or shapes than they should be, or texts that are none.
        raise LogError(f"{path}: {exc}") from exc


def read_jsonl(lines: Iterable[bytes], *, encode: Encode | None = None) -> tuple[Log, int]:
    """Return the log of these lines, and how many decisions were left out.

    Parameters
    ----------
    lines : iterable of bytes
    encode : callable, optional
        Without it requests with a prompt have no features.
    """
    records = _Records()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            records.add(line)
        except (BadRecordError, LogError, msgspec.DecodeError, ValueError) as exc:
            raise LogError(f"line {number}: {exc}") from exc
    usable = [d for d in records.decisions.values() if d.arm is not None and d.propensity > 0.0]
    if not usable:
        raise LogError("there is no decision for an arm")
    return _log(records, usable, encode), len(records.decisions) - len(usable)


def _log(records: _Records, decisions: list[Decision], encode: Encode | None) -> Log:
    names = sorted(
        {c.arm for d in decisions for c in d.candidates} | {str(d.arm) for d in decisions}
    )
    column = {name: index for index, name in enumerate(names)}
    shape = (len(decisions), len(names))
    eligible = np.zeros(shape, np.bool_)
    reward, cost = np.full(shape, np.nan), np.full(shape, np.nan)
    paid = np.full((len(decisions), 2), np.nan)
    for row, decision in enumerate(decisions):
        for candidate in decision.candidates:
            at = column[candidate.arm]
            eligible[row, at] = candidate.score is not None
            reward[row, at] = candidate.reward
            cost[row, at] = candidate.cost_nanousd / NANO_PER_USD
        eligible[row, column[str(decision.arm)]] = True
        paid[row] = _paid(records, decision)
    return Log(
        arms=tuple(_arm(records, decisions, name) for name in names),
        features=_features(records, decisions, encode),
        input_tokens=np.array([d.input_tokens for d in decisions], np.int64),
        max_output_tokens=np.array([d.max_output_tokens for d in decisions], np.int64),
        seeds=np.array([_seed(d.decision_id) for d in decisions], np.uint64),
        arm=np.array([column[str(d.arm)] for d in decisions], np.int64),
        propensity=np.array([d.propensity for d in decisions]),
        reward=np.array([_of(records.rewards, d, np.nan) for d in decisions], np.float64),
        cost_usd=paid[:, 0],
        output_tokens=paid[:, 1],
        eligible=eligible,
        expected_reward=reward,
        expected_cost_usd=cost,
        dual_price=np.array([max((b.dual_price for b in d.budgets), default=0) for d in decisions]),
    )


def _of(found: dict[str, Any], decision: Decision, default: Any) -> Any:
    """Return what an outcome said of a decision, by the decision's id or else the request's."""
    return found.get(decision.decision_id, found.get(decision.request_id, default))


def _paid(records: _Records, decision: Decision) -> tuple[float, float]:
    """Return dollars and output tokens of a decision's call, nan where not known."""
    outcome: Outcome | None = _of(records.paid, decision, None)
    if outcome is None:
        return np.nan, np.nan
    usage, tag = outcome.usage, decision.price
    tokens = np.nan if usage is None else float(usage.completion_tokens)
    if outcome.cost_nanousd is not None:
        return outcome.cost_nanousd / NANO_PER_USD, tokens
    if usage is None or tag is None:
        return np.nan, tokens
    amount = call_cost_nanousd(
        _price(tag),
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        cached_tokens=usage.cached_tokens,
    )
    return amount / NANO_PER_USD, tokens


def _arm(records: _Records, decisions: list[Decision], name: str) -> Arm:
    """Return the arm at its latest price: the catalog's, else the last that a decision pinned."""
    price = records.prices.get(name)
    if price is None:
        tags = [d.price for d in decisions if d.arm == name and d.price is not None]
        price = _price(tags[-1]) if tags else None
    entry = records.arms.get(name, ArmEntry(arm=name))
    return Arm(
        arm=name,
        price=price,
        prior_reward=entry.prior_reward,
        prior_output_tokens=entry.prior_output_tokens,
        explore=entry.explore,
    )


def _seed(decision_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(decision_id.encode(), digest_size=8).digest(), "big")


def _features(records: _Records, decisions: list[Decision], encode: Encode | None) -> Floats:
    """Return features and the constant, (n, d); the constant alone where requests are missing."""
    rows: list[Floats] = []
    prompts: dict[int, str] = {}
    version = ""
    for decision in decisions:
        request = records.requests.get(_key(decision.budget, decision.request_id))
        if request is None:
            rows.append(np.zeros(0))
        elif request.features is not None:
            rows.append(np.array(request.features, np.float64))
        elif request.features_b64 is not None:
            raw = base64.b64decode(request.features_b64, validate=True)
            rows.append(np.frombuffer(raw, "<f4").astype(np.float64))
        else:
            # All by the newest version: features of two would not mean the same.
            version = decision.features
            prompts[len(rows)] = request.prompt or ""
            rows.append(np.zeros(0))
    if prompts and encode is not None:
        for row, encoded in zip(prompts, encode(version, list(prompts.values())), strict=True):
            rows[row] = encoded
    widths = {len(row) for row in rows}
    if len(widths) > 1:
        raise LogError(f"requests have features of different lengths: {sorted(widths)}")
    return np.hstack([np.array(rows).reshape(len(rows), -1), np.ones((len(rows), 1))])


def read_npz(path: Path) -> tuple[Log, int]:
    """Return the log in arrays, for n decisions and k arms, and 0.

    Needed are ``model`` (k,), ``arm`` (n,) columns, ``propensity`` (n,), ``reward`` and
    ``cost_usd`` (n,). Known besides are ``features`` (n, d) without a constant, ``input_tokens``,
    ``output_tokens``, ``dual_price`` (n,), ``eligible``, ``expected_reward``,
    ``expected_cost_usd`` (n, k), and ``price_in_microusd_per_mtok`` and
    ``price_out_microusd_per_mtok`` (k,).
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except OSError:
        raise
    except Exception as exc:
        # What zip, its compressions and numpy raise on broken bytes is of a dozen kinds.
        raise LogError(f"{path}: not an npz file ({exc})") from exc
    broken = [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]
    if broken:
        raise LogError(f"{path}: {broken[0]!r} is not an array")
    missing = {"model", "arm", "propensity", "reward", "cost_usd"} - arrays.keys()
    if missing:
        raise LogError(f"{path}: array {min(missing)!r} is missing")
    names = [str(name) for name in arrays["model"]]
    count = len(arrays["arm"])

    def given(name: str, default: float, *shape: int) -> Any:
        return np.asarray(arrays.get(name, np.full(shape, default)), np.float64)

    price_in = given("price_in_microusd_per_mtok", 0, len(names))
    price_out = given("price_out_microusd_per_mtok", 0, len(names))
    arms = tuple(
        Arm(arm=name, price=Price(version=1, input=int(i), output=int(o)) if i or o else None)
        for name, i, o in zip(names, price_in, price_out, strict=True)
    )
    features = given("features", 0, count, 0)
    log = Log(
        arms=arms,
        features=np.hstack([features, np.ones((count, 1))]),
        input_tokens=given("input_tokens", 0, count).astype(np.int64),
        max_output_tokens=np.full(count, 10**8, np.int64),
        seeds=np.array([_seed(str(row)) for row in range(count)], np.uint64),
        arm=arrays["arm"].astype(np.int64),
        propensity=given("propensity", 0, count),
        reward=given("reward", np.nan, count),
        cost_usd=given("cost_usd", np.nan, count),
        output_tokens=given("output_tokens", np.nan, count),
        eligible=given("eligible", 1, count, len(names)) > 0,
        expected_reward=given("expected_reward", np.nan, count, len(names)),
        expected_cost_usd=given("expected_cost_usd", np.nan, count, len(names)),
        dual_price=given("dual_price", 0, count),
    )
    return log, 0
