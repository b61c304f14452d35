"""Features of a prompt's text: hashed words and word pairs, projected on 64 directions.

The encoder holds numbers only, never text. It predicts cost better than small sentence encoders
do and takes a tenth of a millisecond; it can be refitted on own traffic at any stage, and its
version travels with each decision.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import HashingVectorizer

from policy.terms import Floats

BUCKETS = 2**15
DIMENSIONS = 64
CHARACTERS_MAX = 20_000
"""Only the first characters of a prompt are read, so that one request's work is bounded."""


class LexicalEncoder:
    """Projects hashed 1- and 2-grams of a prompt on the components that :func:`fit` found.

    Parameters
    ----------
    components : ndarray of int8, shape (d, buckets)
    scales : ndarray of float32, shape (d,)
        What one unit of each component is worth.

    Raises
    ------
    ValueError
        If the shapes or types do not fit, or a scale is not finite.
    """

    def __init__(self, components: NDArray[np.int8], scales: NDArray[np.float32]) -> None:
        if components.ndim != 2 or components.dtype != np.int8:
            raise ValueError(f"components must be int8 (d, buckets), got {components.dtype}")
        if scales.shape != components.shape[:1] or scales.dtype != np.float32:
            raise ValueError(f"scales must be float32 {components.shape[:1]}, got {scales.shape}")
        if not np.isfinite(scales).all():
            raise ValueError("scales must be finite")
        self._components = components
        self._scales = scales
        # One contiguous row per bucket: a prompt touches few buckets.
        self._table = np.ascontiguousarray((components * scales[:, None].astype(np.float64)).T)
        self._vectorizer = _vectorizer(components.shape[1])
        digest = hashlib.sha256(repr(components.shape).encode())
        digest.update(components.tobytes())
        digest.update(scales.tobytes())
        self.version = f"lexical-{digest.hexdigest()[:12]}"

    @property
    def dimensions(self) -> int:
        """Number of features, without a constant."""
        return len(self._scales)

    def encode(self, prompts: Sequence[str]) -> Floats:
        """Return the features of each prompt.

        Parameters
        ----------
        prompts : sequence of str

        Returns
        -------
        ndarray, shape (n, d)
            Exactly representable as float32; a prompt's row does not depend on the others. A
            prompt without a word is all zeros. There is no constant column.
        """
        if not prompts:
            return np.zeros((0, self.dimensions))
        features = _counts(self._vectorizer, prompts) @ self._table
        return np.asarray(features, dtype=np.float32).astype(np.float64)

    def dumps(self) -> bytes:
        """Return the encoder as the bytes of an ``.npz``, equal for equal encoders."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, components=self._components, scales=self._scales)
        return buffer.getvalue()


def fit(
    prompts: Sequence[str],
    *,
    dimensions: int = DIMENSIONS,
    buckets: int = BUCKETS,
    seed: int = 0,
) -> LexicalEncoder:
    """Find the directions in which the prompts differ most.

    Parameters
    ----------
    prompts : sequence of str
        A few hundred are enough; more than ``dimensions``.
    dimensions, buckets : int
        Number of features and of hash buckets.
    seed : int
        Of the randomised decomposition.

    Returns
    -------
    LexicalEncoder

    Raises
    ------
    ValueError
        If there are too few prompts.

    Examples
    --------
    >>> encoder = fit([f"number {i} of {i % 3}" for i in range(20)], dimensions=4, buckets=256)
    >>> encoder.encode(["number 7 of 1", ""]).shape
    (2, 4)
    """
    if len(prompts) <= dimensions:
        raise ValueError(f"{dimensions} dimensions need more prompts than {len(prompts)}")
    counts = _counts(_vectorizer(buckets), prompts)
    svd = TruncatedSVD(dimensions, random_state=seed).fit(counts)
    components = np.asarray(svd.components_, dtype=np.float64)
    peaks = np.abs(components).max(axis=1)
    scales = np.where(peaks > 0.0, peaks / 127.0, 1.0).astype(np.float32)
    rounded = np.clip(np.rint(components / scales[:, None]), -127, 127).astype(np.int8)
    return LexicalEncoder(rounded, scales)


def loads(data: bytes) -> LexicalEncoder:
    """Return the encoder that :meth:`LexicalEncoder.dumps` wrote.

    Raises
    ------
    ValueError
        If the bytes hold no encoder.
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            components, scales = arrays["components"], arrays["scales"]
    except Exception as exc:  # A damaged archive raises zip, zlib, key and value errors.
        raise ValueError(f"not an encoder: {exc}") from exc
    return LexicalEncoder(components, scales)


def default_encoder() -> LexicalEncoder:
    """Return the encoder that ships with Tollway; ``policy/data/README.md`` says what it is."""
    return loads((Path(__file__).parent / "data" / "lexical-1.npz").read_bytes())


def _vectorizer(buckets: int) -> HashingVectorizer:
    return HashingVectorizer(n_features=buckets, ngram_range=(1, 2), norm=None)


def _counts(vectorizer: HashingVectorizer, prompts: Sequence[str]) -> Any:
    """Return damped n-gram counts with rows of length one, sparse (n, buckets)."""
    counts = vectorizer.transform([prompt[:CHARACTERS_MAX] for prompt in prompts])
    # A word said twenty times is not twenty times as telling.
    counts.data = np.copysign(np.log1p(np.abs(counts.data)), counts.data)
    lengths = np.sqrt(np.asarray(counts.multiply(counts).sum(axis=1)).ravel())
    counts.data /= np.repeat(np.where(lengths > 0.0, lengths, 1.0), np.diff(counts.indptr))
    return counts
