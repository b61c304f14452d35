"""Moments of features and values about each arm's own means."""

from __future__ import annotations

import numpy as np

from policy.terms import Floats, Ints


class Centred:
    """What estimates need of the moments of k arms, of g quantities; kept until an arm changes.

    Parameters
    ----------
    groups, arms : int
        g and k.
    features : int
        d, without the constant.

    Attributes
    ----------
    weight : ndarray, shape (g, k)
        Decayed number of observations.
    squares : ndarray, shape (g, k)
        Sum of squares of all features, about 0.
    means : ndarray, shape (g, k, d)
        Of the features.
    products : ndarray, shape (g, k, d, d)
        Of features about their means.
    crossed : ndarray, shape (g, k, d)
        Products of features and value about their means.
    values : ndarray, shape (g, k)
        Sum of squares of the value about its mean.
    trace, norm : ndarray, shape (g, k)
        Of ``products``, and the sum of their squares.
    """

    __slots__ = (
        "crossed", "means", "norm", "products", "squares", "trace", "values", "weight",
    )  # fmt: skip

    def __init__(self, groups: int, arms: int, features: int) -> None:
        shape = (groups, arms)
        self.weight: Floats = np.zeros(shape)
        self.squares: Floats = np.zeros(shape)
        self.means: Floats = np.zeros((*shape, features))
        self.products: Floats = np.zeros((*shape, features, features))
        self.crossed: Floats = np.zeros((*shape, features))
        self.values: Floats = np.zeros(shape)
        self.trace: Floats = np.zeros(shape)
        self.norm: Floats = np.zeros(shape)

    def take(self, group: Ints, arm: Ints, moments: Floats) -> None:
        """Take the moments of some arms, shape (n, d + 2, d + 2); ``group`` and ``arm`` name them.

        Rows and columns of the moments are the features, the constant and the value.
        """
        at = group, arm
        weight, sums, total = moments[:, -2, -2], moments[:, -2, :-2], moments[:, -2, -1]
        safe = np.maximum(weight, 1e-12)
        means = sums / safe[:, None]
        products = moments[:, :-2, :-2] - sums[:, :, None] * means[:, None]
        self.weight[at] = weight
        self.squares[at] = np.einsum("nii->n", moments[:, :-2, :-2])
        self.means[at] = means
        self.products[at] = products
        self.crossed[at] = moments[:, :-2, -1] - means * total[:, None]
        self.values[at] = moments[:, -1, -1] - total**2 / safe
        self.trace[at] = np.einsum("nii->n", products)
        self.norm[at] = np.einsum("nij,nij->n", products, products)
