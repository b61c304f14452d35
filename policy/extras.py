"""Options of the score besides reward and dollars, made from the settings of a policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from policy.extra import Extra, Scored
from policy.floor import QualityFloor
from policy.latency import LatencyWeight
from policy.preferences import Preferences
from policy.strong_share import StrongShare
from policy.switching import SwitchingCost
from policy.terms import Floats, Learning

Value = float | int | str | bool
_LENGTH = 4
"""Bytes that say how many the options keep of an arm."""

OPTIONS = frozenset(
    {"latency_weight", "switching_cost", "resident", "floor", "strong", "strong_share", "pairwise"}
)


class Extras:
    """The options that are set, in the order in which they act on the score.

    Options
    -------
    pairwise : bool
        Rewards are points of comparisons with other arms (:mod:`policy.preferences`).
    latency_weight : float
        Reward given up per second of an arm's mean latency.
    switching_cost, resident : float, int
        Reward that an arm must gain if it is not among the ``resident`` (1) latest ones.
    strong, strong_share : str, float
        The arm that gets this share of the calls.
    floor : float
        Reward to be met at least cost.

    Raises
    ------
    ValueError
        If a value is out of range, or one of ``strong`` and ``strong_share`` comes alone.
    """

    def __init__(self, options: Mapping[str, Value]) -> None:
        extras: list[Extra] = []
        if options.get("pairwise"):
            extras.append(Preferences())
        if "latency_weight" in options:
            extras.append(LatencyWeight(float(options["latency_weight"])))
        if "switching_cost" in options:
            resident = int(options.get("resident", 1))
            extras.append(SwitchingCost(float(options["switching_cost"]), resident=resident))
        if ("strong" in options) != ("strong_share" in options):
            raise ValueError("strong and strong_share belong together")
        if "strong" in options:
            extras.append(StrongShare(str(options["strong"]), float(options["strong_share"])))
        if "floor" in options:
            extras.append(QualityFloor(float(options["floor"])))
        self._extras = tuple(extras)
        self.span_arms = any(extra.spans_arms for extra in extras)

    def __bool__(self) -> bool:
        return bool(self._extras)

    def shifted(self, arms: Sequence[str], reward: Floats) -> Floats:
        """Return the estimated rewards, shape (n, k), with what the options add to them."""
        for extra in self._extras:
            shift = extra.shift(arms)
            if shift is not None:
                reward = reward + shift
        return reward

    def adjusted(self, scored: Scored) -> Floats:
        """Return the scores, shape (n, k), with all options in them."""
        for extra in self._extras:
            scored = replace(scored, score=extra.adjust(scored))
        return scored.score

    def decided(self, arm: str) -> None:
        """Note a decision."""
        for extra in self._extras:
            extra.decided(arm)

    def learned(self, learning: Learning) -> None:
        """Note an outcome."""
        for extra in self._extras:
            extra.learned(learning)

    def dump(self, arm: str) -> bytes:
        """Return what is kept of one arm; nothing if there is nothing."""
        kept = {extra.name: extra.kept(arm) for extra in self._extras}
        known = {name: value for name, value in kept.items() if value is not None}
        return msgspec.msgpack.encode(known) if known else b""

    def load(self, arm: str, state: bytes) -> None:
        """Put it back; what belongs to an option that is not set is left out.

        Raises
        ------
        ValueError
            If it is not what :meth:`dump` returned.
        """
        if not state:
            return
        try:
            known = msgspec.msgpack.decode(state, type=dict[str, Any])
        except msgspec.MsgspecError as exc:
            raise ValueError(f"state of the options: {exc}") from exc
        for extra in self._extras:
            if extra.name in known:
                extra.restore(arm, known[extra.name])


def joined(extra: bytes, state: bytes) -> bytes:
    """Return what the options keep of an arm and what was learned of it, together."""
    return len(extra).to_bytes(_LENGTH, "little") + extra + state


def parted(state: bytes) -> tuple[bytes, bytes]:
    """Return what :func:`joined` was given.

    Examples
    --------
    >>> parted(joined(b"kept", b"learned"))
    (b'kept', b'learned')
    """
    end = _LENGTH + int.from_bytes(state[:_LENGTH], "little")
    return state[_LENGTH:end], state[end:]
