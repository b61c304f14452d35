"""What will happen in a run, all of it drawn from one seed before the run begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from policy.calendar import window_end_ms
from policy.terms import Bools, Floats, Ints
from streams.demo.budgets import BURST_ROOT, PAYERS
from streams.replay.data import Recorded

ARMS = (
    "gemma-2-2b-it",
    "gemini-1.5-flash",
    "deepseek-v2.5-0908",
    "gpt-4o-mini-2024-07-18",
    "Meta-Llama-3.1-70B-Instruct",
    "Llama-3.1-405B-Inst@sambanova",
    "Mistral-Large-2",
    "claude-3-5-sonnet-20241022",
)
"""Eight of the 27 recorded models, cheap to dear: a call costs $0.00005 to $0.0034 on average."""
PRICE_CUT_ARM = "claude-3-5-sonnet-20241022"
PRICE_CUT = 10
"""Its price is divided by this."""
DROP_KEEPS = 0.3
"""After the silent drop an answer of the arm that was right is still right with this chance."""
FEATURES = 64
MEAN_NANOUSD = 500_000
"""What a request may cost on average, $0.0005: twice a good cheap call, a seventh of a best one."""

Report = Literal["whole", "apart", "twice", "late", "never"]
REPORTS: tuple[Report, ...] = ("whole", "apart", "twice", "late", "never")
_REPORT_SHARES = (0.75, 0.19, 0.04, 0.01, 0.01)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How long a run is and how much happens in it."""

    requests: int
    window_s: tuple[int, ...]
    windows: int = 2
    delay_s: float = 0.6
    expire_s: int = 12
    defer_ms: int = 0
    burst_factor: int = 4


FAST = Scale(requests=3_600, window_s=(20, 19, 21, 18, 22))
"""The first quarter of an hour of the trace, twenty times as fast."""
FULL = Scale(requests=19_366, window_s=(80, 79, 81, 78, 82, 77, 83, 76, 84), windows=3, expire_s=40)
"""The whole trace of 58 minutes in four."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """When the story happens, as shares of the run."""

    price_cut: float = 0.18
    drop: float = 0.42
    kill: float = 0.54
    burst: float = 0.78
    burst_end: float = 0.90


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Schedule:
    """Every request of a run, in the order of arrival; n of them.

    Parameters
    ----------
    at_s : ndarray, shape (n,)
    prompt : ndarray of int64, shape (n,)
        Row of the recorded data.
    payer : ndarray of int64, shape (n,)
        Index into :data:`PAYERS`.
    output_cap : ndarray of int64, shape (n,)
        As agents ask for: two to five times what a model mostly uses for the prompt.
    burst : ndarray of bool, shape (n,)
        Whether the request is one of the burst.
    again : ndarray of bool, shape (n,)
        Whether its producer sends it twice.
    report : ndarray of int64, shape (n,)
        Index into :data:`REPORTS`: how the caller tells what became of the call.
    delay_s, reward_delay_s : ndarray, shape (n,)
        How long the call takes; how much later its reward is known if that is told apart.
    luck : ndarray, shape (n,)
        Uniform in [0, 1): whether an answer survives the quality drop.
    duration_s : float
    """

    at_s: Floats
    prompt: Ints
    payer: Ints
    output_cap: Ints
    burst: Bools
    again: Bools
    report: Ints
    delay_s: Floats
    reward_delay_s: Floats
    luck: Floats
    duration_s: float

    def __len__(self) -> int:
        return len(self.at_s)


def first_window(after_ms: int, lengths_s: Sequence[int]) -> tuple[int, int]:
    """Return the length of the windows and where the first begins, not before ``after_ms``.

    Windows lie on a grid from the epoch. Of the lengths allowed the one is taken whose grid has
    the next line, so that a run begins with a whole window and nobody waits for it.

    Examples
    --------
    >>> first_window(1_000_500, (14, 13, 15))
    (13, 1001000)
    """
    starts = [(window_end_ms(f"{length}s", after_ms - 1), length) for length in lengths_s]
    start_ms, length = min(starts)
    return length, start_ms


def arms_of(recorded: Recorded) -> Ints:
    """Return the columns of the demo's arms in the recorded data."""
    return np.array([recorded.models.index(name) for name in ARMS], np.int64)


def prior_rewards(recorded: Recorded) -> list[float]:
    """Return what an operator expects of each arm: its mean score as a leaderboard shows it."""
    means = recorded.reward[:, arms_of(recorded)].mean(axis=0)
    return [round(20.0 * float(mean)) / 20.0 for mean in means]


def make_schedule(
    recorded: Recorded, arrivals_s: Floats, *, scale: Scale, window_s: int, times: Times, seed: int
) -> Schedule:
    """Return the requests of a run: real prompts in the real rhythm, the payers drawn."""
    rng = np.random.default_rng(seed)
    duration_s = float(scale.windows * window_s)
    at = arrivals_s[: scale.requests]
    at = at * (duration_s / (at[-1] + 1e-9))
    payer = rng.choice(len(PAYERS), size=len(at), p=np.array([p.share for p in PAYERS]))
    extra = _burst(rng, at, payer, factor=scale.burst_factor, times=times, duration_s=duration_s)
    order = np.argsort(np.concatenate([at, extra[0]]), kind="stable")
    n = len(order)
    # Every prompt before any comes again.
    rounds = -(-n // len(recorded))
    prompt = np.concatenate([rng.permutation(len(recorded)) for _ in range(rounds)])[:n]
    typical = np.median(recorded.output_tokens[:, arms_of(recorded)], axis=1)[prompt]
    return Schedule(
        at_s=np.concatenate([at, extra[0]])[order],
        prompt=prompt.astype(np.int64),
        payer=np.concatenate([payer, extra[1]])[order],
        output_cap=(np.ceil(typical * rng.uniform(2.5, 5.0, n) / 64.0) * 64).astype(np.int64),
        burst=(order >= len(at)),
        again=rng.random(n) < 0.005,
        report=rng.choice(len(REPORTS), size=n, p=np.array(_REPORT_SHARES)),
        delay_s=np.clip(rng.lognormal(np.log(scale.delay_s) - 0.1, 0.45, n), 0.2, 4.0),
        reward_delay_s=rng.uniform(0.2, 2.0, n),
        luck=rng.random(n),
        duration_s=duration_s,
    )


def _burst(
    rng: np.random.Generator, at: Floats, payer: Ints, *, factor: int, times: Times,
    duration_s: float,
) -> tuple[Floats, Ints]:  # fmt: skip
    """Return arrivals and payers that multiply the requests of one root for a while."""
    keys = np.array([p.root == BURST_ROOT for p in PAYERS])
    begin, end = times.burst * duration_s, times.burst_end * duration_s
    usual = payer[keys[payer] & (at >= begin) & (at < end)]
    more = np.repeat(usual, factor - 1)
    return np.sort(rng.uniform(begin, end, len(more))), more


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Truth:
    """What every arm would answer to every request of the schedule; n requests, k arms.

    ``tokens`` are cut off at the request's output cap; an answer that was cut off is wrong.
    """

    reward: Floats
    input_tokens: Ints
    tokens: Ints

    def answer(
        self, request: int, arm: int, *, output_cap: int, dropped: bool, luck: float
    ) -> tuple[int, float]:
        """Return output tokens and reward of one call; the cap is that of the decision."""
        tokens = int(self.tokens[request, arm])
        if tokens > output_cap:
            return output_cap, 0.0
        reward = float(self.reward[request, arm])
        return tokens, 0.0 if dropped and luck >= DROP_KEEPS else reward


def make_truth(recorded: Recorded, schedule: Schedule) -> Truth:
    """Return what the recorded data say about the requests of the schedule."""
    columns, rows = arms_of(recorded), schedule.prompt
    tokens = recorded.output_tokens[rows][:, columns]
    whole = tokens <= schedule.output_cap[:, None]
    return Truth(
        reward=np.where(whole, recorded.reward[rows][:, columns], 0.0),
        input_tokens=recorded.input_tokens[rows],
        tokens=np.minimum(tokens, schedule.output_cap[:, None]),
    )
