"""Pairwise preferences as rewards: which of two answers was better, instead of how good one was.

An outcome may say with which other arm's answer the chosen arm's was compared; its reward is then
1 for a win, 0 for a loss, 0.5 for a tie. Points against weak opponents are worth less: strengths
come from the Bradley-Terry model of all comparisons, and the reward that the policy has learned
from the points is moved to the chance of beating any other arm.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from policy.extra import Extra, Kept, numbers
from policy.terms import Floats, Learning

_KEEP = 0.999
_PRIOR = 1.0
"""Ties that each pair is assumed to have played beforehand."""
_ROUNDS_MAX, _PRECISION = 200, 1e-9


def bradley_terry(games: Floats, points: Floats) -> Floats:
    """Return the ratings in natural logarithms, with mean 0.

    Parameters
    ----------
    games : ndarray, shape (k, k)
        How often the arms were compared; symmetric.
    points : ndarray, shape (k, k)
        Points of the row's arm against the column's; ``points + points.T == games``.

    Returns
    -------
    ndarray, shape (k,)
        Arm ``a`` beats ``b`` with probability ``1 / (1 + exp(r_b - r_a))``.

    References
    ----------
    .. [1] Hunter, MM algorithms for generalized Bradley-Terry models, Ann. Statist. 32, 2004.

    Examples
    --------
    >>> rating = bradley_terry(np.array([[0.0, 40.0], [40.0, 0.0]]),
    ...                        np.array([[0.0, 30.0], [10.0, 0.0]]))
    >>> float(np.round(np.exp(rating[0] - rating[1]), 2))
    2.9
    """
    others = 1.0 - np.eye(len(games))
    played = games + _PRIOR * others
    won = (points + 0.5 * _PRIOR * others).sum(axis=1)
    strength = np.ones(len(games))
    for _ in range(_ROUNDS_MAX):
        pairs = played / (strength[:, None] + strength)
        stronger = won / np.maximum(pairs.sum(axis=1), 1e-300)
        stronger /= np.exp(np.log(stronger).mean())
        moved = float(np.abs(stronger - strength).max())
        strength = stronger
        if moved < _PRECISION:
            break
    return np.asarray(np.log(strength), dtype=np.float64)


class Preferences(Extra):
    """Moves each arm's reward from its points to its chance of beating any other arm.

    Each arm keeps its own comparisons (number and points by opponent, forgetting within a
    thousand); the ratings are worked out from all of them when they are needed.
    """

    name = "preferences"

    def __init__(self) -> None:
        self._tables: dict[str, dict[str, tuple[float, float]]] = {}
        self._shifts: tuple[tuple[str, ...], Floats] | None = None

    def shift(self, arms: Sequence[str]) -> Floats | None:
        """Return the chance of beating another arm less the mean points, shape (k,)."""
        names = tuple(arms)
        if self._shifts is None or self._shifts[0] != names:
            self._shifts = names, self._solve(names)
        return self._shifts[1]

    def learned(self, learning: Learning) -> None:
        """Note a comparison."""
        if learning.against is None or learning.reward is None:
            return
        if learning.against == learning.arm:
            return
        table = self._tables.setdefault(learning.arm, {})
        for other, (games, points) in table.items():
            table[other] = _KEEP * games, _KEEP * points
        games, points = table.get(learning.against, (0.0, 0.0))
        table[learning.against] = games + 1.0, points + learning.reward
        self._shifts = None

    def kept(self, arm: str) -> Kept | None:
        """Return the comparisons of this arm."""
        return self._tables.get(arm)

    def restore(self, arm: str, kept: Kept) -> None:
        """Put the comparisons back."""
        if isinstance(kept, list):
            raise ValueError(f"not comparisons by opponent: {kept!r}")  # noqa: TRY004
        pairs = {other: numbers(list(pair), 2) for other, pair in kept.items()}
        self._tables[arm] = {other: (pair[0], pair[1]) for other, pair in pairs.items()}
        self._shifts = None

    def _solve(self, names: tuple[str, ...]) -> Floats:
        place = {name: index for index, name in enumerate(names)}
        own_games, own_points = (np.zeros((len(names), len(names))) for _ in range(2))
        for arm, table in self._tables.items():
            for other, (games, points) in table.items():
                if arm in place and other in place:
                    own_games[place[arm], place[other]] = games
                    own_points[place[arm], place[other]] = points
        count = own_games.sum(axis=1)
        if len(names) < 2 or not count.any():
            return np.zeros(len(names))
        # What one has won the other has lost, whichever of the two was chosen.
        rating = bradley_terry(own_games + own_games.T, own_points + (own_games - own_points).T)
        beats = 1.0 / (1.0 + np.exp(rating - rating[:, None]))
        chance = (beats.sum(axis=1) - 0.5) / (len(names) - 1)
        mean = own_points.sum(axis=1) / np.maximum(count, 1e-300)
        return np.asarray(np.where(count > 0.0, chance - mean, 0.0), dtype=np.float64)
