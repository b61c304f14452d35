"""What ``pareto`` reads of the catalog's arms, in columns: prices, and what is expected beforehand.

Made once for each catalog, so that the arms are not asked at every batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from policy.linear import Solution
from policy.money import NANO_PER_USD
from policy.terms import Arm, Bools, Contexts, Floats

_LOG_TOKENS_MAX = 18.5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PricedArms:
    """The arms of a catalog; all arrays of shape (k,).

    Parameters
    ----------
    priced : ndarray of bool
    all_priced : bool
    price_input, price_output : ndarray
        Micro-dollars per million tokens; 0 for an arm without a price.
    rewards, log_tokens : sequence of k floats or None
        Mean reward and mean ``log(1 + output tokens)`` that an operator expects of each arm.
    """

    priced: Bools
    all_priced: bool
    price_input: Floats
    price_output: Floats
    rewards: Sequence[float | None]
    log_tokens: Sequence[float | None]

    @classmethod
    def of(cls, arms: Sequence[Arm]) -> PricedArms:
        """Return the columns of these arms, in their order."""
        prices = [arm.price for arm in arms]
        tokens = [arm.prior_output_tokens for arm in arms]
        return cls(
            priced=np.array([price is not None for price in prices], np.bool_),
            all_priced=None not in prices,
            price_input=np.array([price.input if price else 0 for price in prices], np.float64),
            price_output=np.array([price.output if price else 0 for price in prices], np.float64),
            rewards=[arm.prior_reward for arm in arms],
            log_tokens=[None if count is None else float(np.log1p(count)) for count in tokens],
        )

    def cost_usd(self, contexts: Contexts, lengths: Solution) -> Floats:
        """Return expected dollars, shape (n, k), from estimates of ``log(1 + output tokens)``.

        At the mean of the log-normal length, which the caller's cap bounds.
        """
        # In place: with many arms, memory for each step would take longer than the step.
        tokens = lengths.predict(contexts.features)
        tokens += np.minimum(lengths.variance, 2.0) / 2.0
        np.expm1(np.minimum(tokens, _LOG_TOKENS_MAX, out=tokens), out=tokens)
        np.maximum(tokens, 0.0, out=tokens)
        np.minimum(tokens, contexts.max_output_tokens[:, None], out=tokens)
        cost: Floats = contexts.input_tokens[:, None] * self.price_input
        cost += np.multiply(tokens, self.price_output, out=tokens)
        cost /= 1_000.0 * NANO_PER_USD
        return cost


def prior_means(
    given: Sequence[float | None], moments: Sequence[Floats], default: float
) -> list[float]:
    """Return each arm's expected mean: as given, else that of all arms, else the default.

    ``moments`` are of shape (d + 1, d + 1): of features, the constant and the value.
    """
    weight = sum([matrix.item(-2, -2) for matrix in moments])
    total = sum([matrix.item(-2, -1) for matrix in moments])
    # The default counts as one observation, so that it gives way at once.
    mean = (total + default) / (weight + 1.0)
    return [mean if value is None else value for value in given]
