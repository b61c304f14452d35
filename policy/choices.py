"""What was decided for a batch: in columns, and one by one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy.choose import Round
from policy.money import Price
from policy.requests import Incoming, Requests
from policy.terms import Arm, Bools, Floats, Ints

Position = tuple[str, int, int, int, int, float, float]
"""One budget just after a decision: name, window start, limit, reserved, settled, dual price, and
the dollars per request that the spend curve foretold there."""


@dataclass(slots=True, kw_only=True, eq=False)
class Choice:
    """What was decided for one request.

    ``column`` is the chosen arm's, and ``why_not`` is empty where it is that of the round.
    """

    request: Incoming
    row: int = 0
    column: int = -1
    arm: str | None = None
    rejected: str | None = None
    max_output_tokens: int = 0
    reserved_nanousd: int = 0
    price: Price | None = None
    reward: float = 0.0
    cost_nanousd: int = 0
    propensity: float = 0.0
    explored: bool = False
    budgets: Sequence[Position] = ()
    why_not: Sequence[int] = ()


@dataclass(kw_only=True, eq=False)
class Choices(Sequence[Choice]):
    """The choices for the requests that were decided, in the order of their decisions.

    Parameters
    ----------
    requests : Requests
        Of the round, those that wait among them.
    rounds : Round
    arms : tuple of Arm
        Of the round's columns.
    rows : ndarray of int64, shape (c,)
        Which requests were decided.
    column, reserved_nanousd, max_output_tokens : ndarray of int64, shape (n,)
        Of each request of the round; the column is -1 where none was chosen.
    reserved_after : ndarray of int64, shape (p,)
        What the budget of each pair holds just after the decision.
    rejected, why_not : dict
        By row: the reason of a rejection, and codes that differ from those of the round.
    budget_names : list of str, length m
    window_start_ms, limit_nanousd, settled_nanousd : ndarray of int64, shape (m,)
        Of the round's budgets when it was decided.
    """

    requests: Requests
    rounds: Round
    arms: tuple[Arm, ...]
    rows: Ints
    column: Ints
    reserved_nanousd: Ints
    max_output_tokens: Ints
    reserved_after: Ints
    rejected: Mapping[int, str]
    why_not: Mapping[int, Sequence[int]]
    budget_names: list[str]
    window_start_ms: Ints
    limit_nanousd: Ints
    settled_nanousd: Ints

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Choice]:
        return (self._choice(row) for row in self.rows.tolist())

    def __getitem__(self, index: int) -> Choice:  # type: ignore[override]
        return self._choice(self.rows.item(index))

    @cached_property
    def cost_nanousd(self) -> Ints:
        """Return the expected cost of the chosen arms, shape (n,); 0 where there is none."""
        cost: Ints = self._chosen(self.rounds.cost_nanousd)
        return cost

    @cached_property
    def reward(self) -> Floats:
        """Return the estimated reward of the chosen arms, shape (n,)."""
        reward: Floats = self._chosen(self.rounds.reward)
        return reward

    @cached_property
    def explored(self) -> Bools:
        """Return whether chance chose, shape (n,)."""
        result: Bools = self.rounds.explored & (self.column == self.rounds.first)
        return result & (self.column >= 0)

    @cached_property
    def propensity(self) -> Floats:
        """Return how likely each choice was, shape (n,)."""
        propensity: Floats = self._chosen(self.rounds.propensity)
        for row in np.flatnonzero((self.column >= 0) & (self.column != self.rounds.first)).tolist():
            propensity[row] = _inherited(self.rounds, row, self.column.item(row))
        return propensity

    def _chosen(self, values: NDArray[Any]) -> Any:
        if values.shape[1] == 0:
            return np.zeros(len(values), values.dtype)
        found = values[np.arange(len(values)), self.column]
        found[self.column < 0] = 0
        return found

    @cached_property
    def positions(self) -> list[list[Position]]:
        """Return where the budgets of each request's path stand, for all n requests."""
        pairs = self.rounds.pairs
        places = pairs.place.tolist()
        of_budget = [
            [values[place] for place in places]
            for values in (
                self.budget_names,
                self.window_start_ms.tolist(),
                self.limit_nanousd.tolist(),
                self.settled_nanousd.tolist(),
                self.rounds.dual_price.tolist(),
                self.rounds.planned_usd.tolist(),
            )
        ]
        of_budget.insert(3, self.reserved_after.tolist())
        flat = list(zip(*of_budget, strict=True))
        starts = pairs.starts.tolist()
        return [flat[a:b] for a, b in pairwise(starts)]

    def _choice(self, row: int) -> Choice:
        column = self.column.item(row)
        arm = self.arms[column] if column >= 0 else None
        return Choice(
            request=self.requests.row(row),
            row=row,
            column=column,
            arm=None if arm is None else arm.arm,
            rejected=self.rejected.get(row),
            max_output_tokens=self.max_output_tokens.item(row),
            reserved_nanousd=self.reserved_nanousd.item(row),
            price=None if arm is None else arm.price,
            reward=self.reward.item(row),
            cost_nanousd=self.cost_nanousd.item(row),
            propensity=self.propensity.item(row),
            explored=self.explored.item(row),
            budgets=self.positions[row],
            why_not=self.why_not.get(row, ()),
        )


def _inherited(rounds: Round, row: int, column: int) -> float:
    """Return how likely an arm was that was not first: it inherits from those that do not fit."""
    passed_over = (rounds.score[row] > rounds.score[row, column]) & rounds.eligible[row]
    chances = rounds.propensity[row]
    return float(min(chances[column] + chances[passed_over].sum(), 1.0))
