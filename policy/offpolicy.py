"""What another policy would have earned and spent, estimated from logged decisions.

A logged decision counts in proportion to how much likelier the other policy was to take the same
arm. That is unbiased where the logging policy gave every arm that the other one wants some
probability; where it did not, the mean weight falls below one and the estimates say nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from policy.money import NANO_PER_USD
from policy.terms import Arm, Bools, Contexts, Floats, Ints, Learning, Policy, Seeds

BATCH = 64


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Log:
    """Decisions in the order in which they were made, with what became of them.

    Parameters
    ----------
    arms : tuple of Arm
        k arms, in column order.
    features : ndarray, shape (n, d)
        Last column 1.0.
    input_tokens, max_output_tokens : ndarray of int64, shape (n,)
    seeds : ndarray of uint64, shape (n,)
    arm : ndarray of int64, shape (n,)
        Column of the arm that was taken.
    propensity : ndarray, shape (n,)
        Probability with which the logging policy took it, in (0, 1].
    reward, cost_usd, output_tokens : ndarray, shape (n,)
        nan where not known.
    eligible : ndarray of bool, shape (n, k)
    expected_reward, expected_cost_usd : ndarray, shape (n, k)
        Estimates made at the time of the decision; nan where none were logged.
    dual_price : ndarray, shape (n,)

    Raises
    ------
    ValueError
        If shapes differ, a propensity is not in (0, 1], or an arm is out of range or was not
        eligible.
    """

    arms: tuple[Arm, ...]
    features: Floats
    input_tokens: Ints
    max_output_tokens: Ints
    seeds: Seeds
    arm: Ints
    propensity: Floats
    reward: Floats
    cost_usd: Floats
    output_tokens: Floats
    eligible: Bools
    expected_reward: Floats
    expected_cost_usd: Floats
    dual_price: Floats

    def __post_init__(self) -> None:
        count, arms = len(self.arm), len(self.arms)
        for name in (
            "input_tokens",
            "max_output_tokens",
            "seeds",
            "propensity",
            "reward",
            "cost_usd",
            "output_tokens",
            "dual_price",
        ):
            if getattr(self, name).shape != (count,):
                raise ValueError(f"{name} must have shape ({count},)")
        for name in ("eligible", "expected_reward", "expected_cost_usd"):
            if getattr(self, name).shape != (count, arms):
                raise ValueError(f"{name} must have shape ({count}, {arms})")
        if self.features.ndim != 2 or len(self.features) != count:
            raise ValueError(f"features must have shape ({count}, d), got {self.features.shape}")
        if not ((self.propensity > 0.0) & (self.propensity <= 1.0)).all():
            raise ValueError("propensity must be in (0, 1]")
        if count and (self.arm.min() < 0 or self.arm.max() >= arms):
            raise ValueError(f"arm must be in [0, {arms})")
        if not self.eligible[np.arange(count), self.arm].all():
            raise ValueError("a taken arm must be eligible")

    def __len__(self) -> int:
        return len(self.arm)


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean per request with the ends of its interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Three estimates of one quantity, and how far they can be trusted.

    Parameters
    ----------
    ips, snips, doubly_robust : Estimate
        Inverse propensity; the same divided by the mean weight; estimates corrected by the
        weighted error on what was seen.
    used : int
        Decisions whose quantity is known.
    effective : float
        How many decisions of the other policy itself would tell as much.
    weight_mean : float
        1.0 up to chance, unless the log holds no decisions like those of the other policy.
    """

    ips: Estimate
    snips: Estimate
    doubly_robust: Estimate
    used: int
    effective: float
    weight_mean: float


def target_probabilities(log: Log, policy: Policy, *, learn: bool = True) -> Floats:
    """Return how likely a policy is to take each arm at each logged decision, shape (n, k).

    The policy is given the log in order, in batches, at the logged dual prices. With ``learn`` it
    is taught each outcome after the batch that holds it, so that it never knows the outcome of a
    decision that it is asked about.
    """
    policy.set_arms(log.arms)
    target = np.zeros(log.eligible.shape)
    for start in range(0, len(log), BATCH):
        rows = np.arange(start, min(start + BATCH, len(log)))
        contexts = Contexts(
            features=log.features[rows],
            input_tokens=log.input_tokens[rows],
            max_output_tokens=log.max_output_tokens[rows],
            seeds=log.seeds[rows],
        )
        ranking = policy.rank(
            contexts, dual_price=log.dual_price[rows], eligible=log.eligible[rows]
        )
        target[rows] = ranking.propensity
        for row in rows if learn else ():
            _teach(policy, log, int(row))
    return target


def _teach(policy: Policy, log: Log, row: int) -> None:
    arm = log.arms[log.arm[row]].arm
    policy.decided(arm, log.features[row], explored=bool(log.propensity[row] < 1.0))
    reward, cost, tokens = log.reward[row], log.cost_usd[row], log.output_tokens[row]
    policy.learn(
        Learning(
            arm=arm,
            features=log.features[row],
            input_tokens=int(log.input_tokens[row]),
            age=0,
            reward=None if np.isnan(reward) else float(reward),
            cost_nanousd=None if np.isnan(cost) else round(float(cost) * NANO_PER_USD),
            output_tokens=None if np.isnan(tokens) else int(tokens),
        )
    )


def evaluate(
    log: Log, target: Floats, *, confidence: float = 0.95
) -> tuple[Evaluation, Evaluation]:
    """Return the evaluations of reward and of cost in dollars.

    Parameters
    ----------
    log : Log
    target : ndarray, shape (n, k)
        Probabilities of the policy to be evaluated, rows summing to one.
    confidence : float
        Of the intervals.

    Raises
    ------
    ValueError
        If shapes differ or fewer than two decisions have the quantity.
    """
    if target.shape != log.eligible.shape:
        raise ValueError(f"target must have shape {log.eligible.shape}, got {target.shape}")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}")
    weight = target[np.arange(len(log)), log.arm] / log.propensity
    return (
        _evaluate(log, target, weight, log.reward, log.expected_reward, confidence),
        _evaluate(log, target, weight, log.cost_usd, log.expected_cost_usd, confidence),
    )


def _evaluate(
    log: Log,
    target: Floats,
    weight: Floats,
    value: Floats,
    expected: Floats,
    confidence: float,
) -> Evaluation:
    known = np.flatnonzero(~np.isnan(value))
    if len(known) < 2:
        raise ValueError(f"{len(known)} decisions with an outcome are too few")
    # Also an estimate that was not logged must come from the past alone.
    guess = _running_means(log.arm, value, len(log.arms))
    expected = np.where(np.isnan(expected), guess, expected)[known]
    target, weight, value, arm = target[known], weight[known], value[known], log.arm[known]
    effective = float(weight.sum() ** 2 / max(float((weight**2).sum()), 1e-300))
    model = (target * expected).sum(axis=1)
    residual = value - expected[np.arange(len(arm)), arm]
    total = max(float(weight.sum()), 1e-300)
    ratio = float((weight * value).sum()) / total
    influence = ratio + weight * (value - ratio) * (len(weight) / total)
    return Evaluation(
        ips=_mean(weight * value, effective, confidence),
        snips=_mean(influence, effective, confidence),
        doubly_robust=_mean(model + weight * residual, effective, confidence),
        used=len(known),
        effective=effective,
        weight_mean=float(weight.mean()),
    )


def _mean(terms: Floats, effective: float, confidence: float) -> Estimate:
    """Return the mean of the terms; the interval leans to the side of their long tail.

    Weighted terms are skewed, and the symmetric interval then misses more often than it says.
    Hall's transformation of the t statistic (Annals of Statistics 20, 1992) takes that out. Long
    tails also make the variance itself uncertain: its degrees of freedom follow from the kurtosis.
    """
    count, mean = len(terms), float(terms.mean())
    spread = float(terms.std(ddof=1))
    if spread == 0.0:
        return Estimate(mean=mean, low=mean, high=mean)
    root = float(np.sqrt(count))
    standard = (terms - mean) / spread
    skew, kurtosis = float((standard**3).mean()), float((standard**4).mean())
    freedom = min(2.0 * count / max(kurtosis - 1.0, 1e-9), effective - 1.0)
    quantile = float(stdtrit(max(freedom, 1.0), 0.5 + confidence / 2.0))
    ends = [mean - spread / root * _untransformed(end, skew, root) for end in (quantile, -quantile)]
    return Estimate(mean=mean, low=ends[0], high=ends[1])


def _untransformed(end: float, skew: float, root: float) -> float:
    if abs(skew) < 1e-6:
        return end
    cube = 1.0 + skew * (end / root - skew / (6.0 * root**2))
    return 3.0 * root / skew * (float(np.cbrt(cube)) - 1.0)


def _running_means(arm: Ints, value: Floats, arms: int) -> Floats:
    """Return each arm's mean before each decision, shape (n, k); that of all arms at first."""
    taken = (arm[:, None] == np.arange(arms)) & ~np.isnan(value)[:, None]
    amount = np.where(taken, np.nan_to_num(value)[:, None], 0.0)
    count_before = np.cumsum(taken, axis=0) - taken
    sum_before = np.cumsum(amount, axis=0) - amount
    count_all = count_before.sum(axis=1, keepdims=True)
    overall = sum_before.sum(axis=1, keepdims=True) / np.maximum(count_all, 1)
    # The mean of all arms counts as one decision of each.
    return np.asarray((sum_before + overall) / (count_before + 1.0), dtype=np.float64)
