"""What a stage of ``stageroute`` is planned with: optimistic reward and expected dollars."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from policy.baselines.base import COSTS, DECIDED, REWARD_SUM, REWARDS, UNIT_SUM
from policy.money import NANO_PER_USD
from policy.terms import Arm, Floats

_PRIOR_TOKENS = 256.0


def stage_bounds(
    totals: Floats, arms: Sequence[Arm], *, radius: float, tries: bool
) -> tuple[Floats, Floats]:
    """Return optimistic reward and expected dollars of each arm, shape (k,) each.

    The published program (arXiv:2506.17254) takes optimistic dollars too and overspends by them; a
    budget that is to hold is planned with expected ones.

    Parameters
    ----------
    totals : ndarray, shape (k, 8)
        Sums of each arm (:mod:`policy.baselines.base`).
    arms : sequence of k Arm
    radius : float
        gamma of the confidence radius ``sqrt(gamma v / n) + gamma / n``.
    tries : bool
        Whether an arm is taken for the best possible one until it had ``Arm.explore`` decisions.
    """
    pulls = totals[:, REWARDS]
    mean = np.clip((totals[:, REWARD_SUM] + 1.0) / (pulls + 1.0), 0.0, 1.0)
    width = np.sqrt(radius * mean / (pulls + 1.0)) + radius / (pulls + 1.0)
    upper = np.clip(mean + 2.0 * width, 0.0, 1.0)
    tried = pulls > 0
    if tries:
        # A few unlucky answers at the start must not put an arm out for good.
        tried &= np.maximum(totals[:, DECIDED], pulls) >= [arm.explore for arm in arms]
    upper = np.where(tried, upper, 1.0)
    # An arm's price is known before its first call: only its tokens are to be learned.
    known = totals[:, COSTS]
    usual = (totals[:, UNIT_SUM].sum() + _PRIOR_TOKENS) / (known.sum() + 1.0)
    unit = (totals[:, UNIT_SUM] + usual) / (known + 1.0)
    price = np.array([float(a.price.input + a.price.output) if a.price else 0.0 for a in arms])
    return upper, unit * price / (1_000.0 * NANO_PER_USD)
