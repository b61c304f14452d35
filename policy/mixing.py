"""Chance in the choice of an arm: forced pulls, epsilon and Thompson draws, with propensities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import log_ndtr, ndtri

from policy.chance import uniforms
from policy.terms import Bools, Floats, Seeds

FORCED_MARGIN = 1.0
"""How far above the best score a forced arm is put."""
_NODES = 128
_FIRST_NORMAL_STREAM = 2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Forced:
    """An arm that a share of the requests is offered to.

    ``allowed``, shape (n,), says which requests may take it; at most ``count`` of them do.
    """

    column: int
    share: float
    allowed: Bools
    count: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mixed:
    """Scores after chance had its say, and the probability of each arm to be first."""

    score: Floats
    propensity: Floats
    explored: Bools


def mix(
    score: Floats,
    shares: Floats | None,
    eligible: Bools,
    *,
    forced: Sequence[Forced],
    epsilon: float,
    seeds: Seeds,
) -> Mixed:
    """Put forced and epsilon choices above the scores.

    Parameters
    ----------
    score : ndarray, shape (n, k)
    shares : ndarray, shape (n, k), or None
        Probability of each arm to have the best score; None if the scores are deterministic.
    eligible : ndarray of bool, shape (n, k)
    forced : sequence of Forced
    epsilon : float
        Share of requests whose arm is drawn evenly from the eligible ones. Together with the
        shares of ``forced`` at most 1; what is beyond is cut off.
    seeds : ndarray of uint64, shape (n,)
        For two uniform numbers: whether and which forced arm; which arm by epsilon.
    """
    open_score = np.where(eligible, score, -np.inf)
    rows = np.arange(len(score))
    first = open_score.argmax(axis=1)
    any_open = np.logical_or.reduce(eligible, axis=1)
    if shares is None:
        propensity = np.zeros(score.shape)
        propensity[rows, first] = any_open
    else:
        propensity = np.where(any_open[:, None], shares, 0.0)
    if not forced and epsilon == 0.0:
        return Mixed(score=score, propensity=propensity, explored=np.zeros(len(score), np.bool_))
    draws = uniforms(seeds, stream=0)
    chosen = np.full(len(score), -1)
    kept, added = np.ones(len(score)), np.zeros_like(score)
    low = 0.0
    for arm in forced:
        high = min(low + arm.share, 1.0 - epsilon)
        hit = arm.allowed & (draws >= low) & (draws < high)
        # A row may take the arm while fewer rows before it did.
        possible = arm.allowed & (np.cumsum(hit) - hit < arm.count)
        chosen = np.where(hit & possible, arm.column, chosen)
        added[possible, arm.column] += high - low
        kept[possible] -= high - low
        low = high
    if epsilon > 0.0:
        counts = eligible.sum(axis=1)
        nth = np.minimum(
            (uniforms(seeds, stream=1) * counts).astype(np.int64), np.maximum(counts - 1, 0)
        )
        drawn = (np.cumsum(eligible, axis=1) > nth[:, None]).argmax(axis=1)
        hit = any_open & (draws >= 1.0 - epsilon)
        chosen = np.where(hit, drawn, chosen)
        added += np.where(eligible, epsilon / np.maximum(counts, 1)[:, None], 0.0)
        kept[any_open] -= epsilon
    explored = chosen >= 0
    if explored.any():
        score = score.copy()
        score[rows[explored], chosen[explored]] = (
            open_score[rows[explored], first[explored]] + FORCED_MARGIN
        )
    propensity *= kept[:, None]
    propensity += added
    return Mixed(score=score, propensity=propensity, explored=explored)


def thompson(mean: Floats, width: Floats, eligible: Bools, seeds: Seeds) -> tuple[Floats, Floats]:
    """Draw a score per request and arm; return it with each arm's probability to be the best.

    Parameters
    ----------
    mean, width : ndarray, shape (n, k)
        Of independent normal scores.
    eligible : ndarray of bool, shape (n, k)
    seeds : ndarray of uint64, shape (n,)

    Returns
    -------
    score, probability : ndarray, shape (n, k)

    Notes
    -----
    The probability of arm a is the mean of ``prod over b of Phi((t - mean_b) / width_b)`` over
    ``t`` drawn from a's own normal; the mean is taken at the midpoints of 128 equal parts of its
    distribution, and the rows are scaled to sum to one.
    """
    columns = range(mean.shape[1])
    draws = [uniforms(seeds, stream=_FIRST_NORMAL_STREAM + column) for column in columns]
    normal = ndtri(np.clip(np.array(draws).T.reshape(mean.shape), 1e-12, 1.0 - 1e-12))
    safe = np.maximum(width, 1e-9)
    nodes = ndtri((np.arange(_NODES) + 0.5) / _NODES)
    probability = np.zeros_like(mean)
    for column in columns:
        at = mean[:, column, None] + safe[:, column, None] * nodes
        logs = np.zeros_like(at)
        for other in columns:
            if other != column:
                units = (at - mean[:, other, None]) / safe[:, other, None]
                logs += np.where(eligible[:, other, None], log_ndtr(units), 0.0)
        probability[:, column] = np.where(eligible[:, column], np.exp(logs).mean(axis=1), 0.0)
    total = probability.sum(axis=1, keepdims=True)
    return mean + width * normal, probability / np.where(total > 0, total, 1.0)
