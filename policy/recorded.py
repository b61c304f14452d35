"""Recorded outcomes of every arm: estimates from them, and totals divided among arms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from policy.neighbours import Neighbours
from policy.terms import Floats, Ints

NEIGHBOURS = 5
_LOOKED_AT = 150
"""Nearest requests among which those are looked for whose outcome of an arm is known."""
Split = Literal["weighted", "cost", "uniform", "extreme"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Recorded:
    """Requests with the outcome of every arm.

    Parameters
    ----------
    features : ndarray, shape (n, d)
        Without a constant.
    reward, cost_usd : ndarray, shape (n, k)
    """

    features: Floats
    reward: Floats
    cost_usd: Floats

    def __len__(self) -> int:
        return len(self.features)


def split_budget(
    total_usd: float, reward: Floats, cost_usd: Floats, *, split: Split, worst: int = 1
) -> Floats:
    """Divide a total among the arms as PORT's experiments do.

    Parameters
    ----------
    total_usd : float
    reward, cost_usd : ndarray, shape (k,)
        Mean reward and cost of each arm in the history.
    split : {"weighted", "cost", "uniform", "extreme"}
        By the square root of reward per dollar, of one over cost, evenly; or 80 % to the
        ``worst`` least efficient arms (50 % to a single one) and the rest evenly.

    Returns
    -------
    ndarray, shape (k,)

    Examples
    --------
    >>> split_budget(3.0, np.array([0.5, 0.5]), np.array([1.0, 4.0]), split="cost")
    array([2., 1.])
    """
    arms = len(reward)
    if split == "extreme":
        if not 1 <= worst < arms:
            raise ValueError(f"worst must be in [1, {arms - 1}], got {worst}")
        heavy = 0.5 if worst == 1 else 0.8
        weights = np.full(arms, (1.0 - heavy) / (arms - worst))
        weights[np.argsort(reward / cost_usd, kind="stable")[:worst]] = heavy / worst
    elif split == "uniform":
        weights = np.ones(arms)
    elif split in ("weighted", "cost"):
        weights = np.sqrt((reward if split == "weighted" else 1.0) / cost_usd)
    else:
        raise ValueError(f"split must be weighted, cost, uniform or extreme, got {split!r}")
    return np.asarray(total_usd * weights / weights.sum(), dtype=np.float64)


def estimate(
    history: Recorded, features: Floats, *, leave_out: bool = False, sharpness: float = 0.0
) -> tuple[Floats, Floats]:
    """Return the mean reward and cost of the nearest requests of the history, each (n, k).

    With ``leave_out`` the features are the history's own and no request is its own neighbour.
    """
    arms = history.reward.shape[1]
    points = Neighbours(history.features.shape[1], 2 * arms, capacity=max(len(history), 2))
    for row in range(len(history)):
        values = np.concatenate([history.reward[row], history.cost_usd[row]])
        points.add(history.features[row], values, order=row)
    count = NEIGHBOURS + leave_out
    means, weights = points.means(features, count=count, sharpness=sharpness)
    if leave_out:
        own = np.hstack([history.reward, history.cost_usd])
        means = (means * weights - own) / np.maximum(weights - 1.0, 1e-9)
    return means[:, :arms], np.maximum(means[:, arms:], 0.0)


class Growing:
    """Estimates from the nearest known outcomes: the history's, and those that come to be known.

    Of a request of the stream only the outcome of the arm that served it becomes known.

    Parameters
    ----------
    history : Recorded
    features : ndarray, shape (n, d)
        Of the stream.
    """

    def __init__(self, history: Recorded, features: Floats) -> None:
        self._before = len(history)
        unknown = np.full((len(features), history.reward.shape[1]), np.nan)
        self._vectors = directions(np.vstack([history.features, features]))
        self._reward = np.vstack([history.reward, unknown])
        self._cost = np.vstack([history.cost_usd, unknown])
        self._usual = history.reward.mean(axis=0), history.cost_usd.mean(axis=0)

    def learn(self, row: int, arm: int, *, reward: float, cost_usd: float) -> None:
        """Note what a request of the stream brought."""
        self._reward[self._before + row, arm] = reward
        self._cost[self._before + row, arm] = cost_usd

    def estimate(self, rows: Ints, *, seen: int) -> tuple[Floats, Floats]:
        """Return the mean reward and cost of the nearest, each (m, k), for requests of the stream.

        Only requests before ``seen`` are looked at, and none at itself.
        """
        places = self._before + rows
        near = self._vectors[places] @ self._vectors[: self._before + seen].T
        inside = places < near.shape[1]
        near[np.flatnonzero(inside), places[inside]] = -np.inf
        count = min(_LOOKED_AT, near.shape[1])
        top = np.argpartition(-near, count - 1, axis=1)[:, :count]
        order = np.argsort(-np.take_along_axis(near, top, axis=1), axis=1, kind="stable")
        top = np.take_along_axis(top, order, axis=1)
        known = ~np.isnan(self._reward[top])
        taken = known & (np.cumsum(known, axis=1) <= NEIGHBOURS)
        counts = taken.sum(axis=1)
        reward, cost = (
            np.where(
                counts > 0,
                np.where(taken, values[top], 0.0).sum(axis=1) / np.maximum(counts, 1),
                usual,
            )
            for values, usual in zip((self._reward, self._cost), self._usual, strict=True)
        )
        return reward, cost


def directions(vectors: Floats) -> Floats:
    """Return vectors of length 1; zeros stay zeros."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    result: Floats = vectors / np.where(lengths > 0.0, lengths, 1.0)
    return result
