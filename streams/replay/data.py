"""Recorded data: every request answered by every arm.

A file is an ``.npz`` with

========================================  =========  ==============================================
``model``                                 (k,)       names of the arms
``lexical`` and/or ``features``           (n, d)     numbers; a constant last column is kept, else
                                                     one is added
``reward`` or ``score``                   (n, k)     in [0, 1]
``cost_usd``                              (n, k)     dollars of each call; or, instead of it,
``input_tokens``, ``output_tokens``,      (n,)       tokens of each request and answer
``price_in_microusd_per_mtok``,           (n, k)     and the price list
``price_out_microusd_per_mtok``           (k,)
``latency_ms`` (optional)                 (n, k)     milliseconds of each call
``release`` (optional)                    (k,)       ISO dates
``source`` or ``task`` (optional)         (n,)       segment of each request, a text
========================================  =========  ==============================================
"""

from __future__ import annotations

import functools
import math
import pickle
import zipfile
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from policy.money import NANO_PER_USD, TOKENS_MAX, Price
from policy.terms import Floats, Ints

SEGMENTS_MAX = 256
"""As many as a catalog may list."""
PSEUDO_TOKENS = 10_000
"""Where a file has costs but no tokens, an arm's median call is counted as so many tokens."""


class DataError(Exception):
    """A file is not recorded data as this module describes it."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Recorded:
    """Recorded data; n requests, k arms, d features with the constant.

    ``segments`` says where each request is from; ``segment_names`` are those of the whole file.
    """

    models: tuple[str, ...]
    features: NDArray[np.float32]
    reward: Floats
    input_tokens: Ints
    output_tokens: Ints
    prices: tuple[Price, ...]
    release: tuple[str, ...] | None = None
    latency_ms: Ints | None = None
    segments: tuple[str, ...] = ()
    segment_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Return the number of requests."""
        return len(self.reward)

    @property
    def dimensions(self) -> int:
        """Number of features without the constant."""
        return int(self.features.shape[1]) - 1

    @property
    def costs_only(self) -> bool:
        """Whether the file gave costs, which are kept as tokens of an invented price."""
        return not self.input_tokens.any() and not any(price.input for price in self.prices)

    @property
    def segment_weight(self) -> float:
        """What a segment's column holds: as much as the features are long, in the root mean square.

        So one ridge penalty suits both, whatever the features' scale; 0 without segments.
        """
        if not self.segment_names:
            return 0.0
        squares = self.features[:, :-1].astype(np.float64) ** 2
        return float(f"{math.sqrt(squares.sum(axis=1).mean()):.2g}") or 1.0

    def rows(self, part: slice | Ints) -> Recorded:
        """Return a part of the requests."""
        return replace(
            self,
            features=self.features[part],
            reward=self.reward[part],
            input_tokens=self.input_tokens[part],
            output_tokens=self.output_tokens[part],
            latency_ms=None if self.latency_ms is None else self.latency_ms[part],
            segments=tuple(np.array(self.segments, object)[part]) if self.segments else (),
        )

    def cost_nanousd(self) -> Ints:
        """Return the cost of every call, (n, k), at the recorded prices."""
        price_in = np.array([p.input for p in self.prices], np.int64)
        price_out = np.array([p.output for p in self.prices], np.int64)
        thousandths = self.input_tokens[:, None] * price_in + self.output_tokens * price_out
        return -(-thousandths // 1_000)


def read(path: Path, *, features: str | None = None, segments: str | None = None) -> Recorded:
    """Return the recorded data of a file.

    ``features`` names the array to use; by default ``lexical`` if there is one, else ``features``.
    ``segments`` names the array that says where a request is from; by default segments are no
    features, as in a catalog that gives them no weight.

    Raises
    ------
    DataError
        If something is missing, of another shape, or out of range.
    """
    arrays = _Arrays(path)
    models = tuple(str(name) for name in arrays.get("model"))
    key = features or ("lexical" if "lexical" in arrays.names else "features")
    matrix = arrays.numbers(key)
    reward = arrays.numbers("reward" if "reward" in arrays.names else "score")
    rows, width = len(matrix), len(models)
    if len(set(models)) != width or width == 0:
        raise DataError(f"{path}: model must hold distinct names")
    arrays.check_shape(key, matrix, (rows, matrix.shape[-1]))
    arrays.check_shape("reward", reward, (rows, width))
    if rows == 0 or reward.min() < 0.0 or reward.max() > 1.0:
        raise DataError(f"{path}: reward must be in [0, 1], for at least one request")
    release = tuple(str(d) for d in arrays.get("release")) if "release" in arrays.names else None
    constant = bool((matrix[:, -1] == 1.0).all())
    wide = matrix if constant else np.hstack([matrix, np.ones((rows, 1))])
    places, names = _segments(arrays, rows, segments)
    recorded = Recorded(
        models=models,
        features=wide.astype(np.float32),
        reward=reward,
        input_tokens=np.zeros(rows, np.int64),
        output_tokens=np.zeros((rows, width), np.int64),
        prices=(),
        release=release,
        latency_ms=_latency(arrays, (rows, width)),
        segments=places,
        segment_names=names,
    )
    known = "output_tokens" in arrays.names and "price_out_microusd_per_mtok" in arrays.names
    return _with_tokens(arrays, recorded) if known else _with_costs(arrays, recorded)


def _segments(
    arrays: _Arrays, rows: int, key: str | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the segment of each request and the names of all; nothing if there are none."""
    if key is None:
        return (), ()
    array = arrays.get(key)
    arrays.check_shape(key, array, (rows,))
    places = tuple(str(place) for place in array)
    names = tuple(sorted(set(places)))
    if len(names) > SEGMENTS_MAX:
        raise DataError(f"{arrays.path}: {key} names {len(names)} segments, not {SEGMENTS_MAX}")
    return places, names


def _latency(arrays: _Arrays, shape: tuple[int, ...]) -> Ints | None:
    if "latency_ms" not in arrays.names:
        return None
    latency = arrays.numbers("latency_ms")
    arrays.check_shape("latency_ms", latency, shape)
    if latency.min() < 0.0:
        raise DataError(f"{arrays.path}: latency_ms must not be negative")
    return np.rint(latency).astype(np.int64)


def _with_tokens(arrays: _Arrays, recorded: Recorded) -> Recorded:
    rows, width = recorded.reward.shape
    tokens_in, tokens_out = arrays.numbers("input_tokens"), arrays.numbers("output_tokens")
    price_in = arrays.numbers("price_in_microusd_per_mtok")
    price_out = arrays.numbers("price_out_microusd_per_mtok")
    for name, array, shape in (
        ("input_tokens", tokens_in, (rows,)),
        ("output_tokens", tokens_out, (rows, width)),
        ("price_in_microusd_per_mtok", price_in, (width,)),
        ("price_out_microusd_per_mtok", price_out, (width,)),
    ):
        arrays.check_shape(name, array, shape)
        if array.min() < 0:
            raise DataError(f"{arrays.path}: {name} must not be negative")
    if max(tokens_in.max(), tokens_out.max()) > TOKENS_MAX:
        raise DataError(f"{arrays.path}: more than {TOKENS_MAX} tokens in a call")
    prices = zip(price_in.tolist(), price_out.tolist(), strict=True)
    return replace(
        recorded,
        input_tokens=tokens_in.astype(np.int64),
        output_tokens=tokens_out.astype(np.int64),
        prices=tuple(Price(version=1, input=int(i), output=int(o)) for i, o in prices),
    )


def _with_costs(arrays: _Arrays, recorded: Recorded) -> Recorded:
    """Express costs as output tokens at a price, so that a price can change in a scenario."""
    cost = arrays.numbers("cost_usd")
    arrays.check_shape("cost_usd", cost, recorded.reward.shape)
    if cost.min() < 0.0 or not np.median(cost, axis=0).min() > 0.0:
        raise DataError(
            f"{arrays.path}: cost_usd must not be negative, nor zero for half the calls"
        )
    nano = cost * NANO_PER_USD
    per_token = np.median(nano, axis=0) / PSEUDO_TOKENS
    output = np.maximum(np.rint(per_token * 1_000), 1.0)
    tokens = np.rint(nano * 1_000 / output).astype(np.int64)
    prices = tuple(Price(version=1, input=0, output=int(price)) for price in output)
    return replace(recorded, output_tokens=np.minimum(tokens, TOKENS_MAX), prices=prices)


class _Arrays:
    """The arrays of a file, read on demand and without running what a pickle may hold."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                self._raw = {
                    name.removesuffix(".npy"): archive.read(name) for name in archive.namelist()
                }
        except FileNotFoundError:
            raise DataError(f"{path}: there is no such file") from None
        except Exception as exc:
            # What zip and its compressions raise on broken bytes is of a dozen kinds.
            raise DataError(f"{path}: not an npz file ({exc})") from exc
        self.names = self._raw.keys()

    def get(self, name: str) -> NDArray[Any]:
        """Return an array of numbers or texts."""
        if name not in self._raw:
            raise DataError(f"{self.path}: {name} is missing")
        stream = BytesIO(self._raw[name])
        try:
            version = np.lib.format.read_magic(stream)
            read_header = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            if read_header(stream)[2].hasobject:
                return np.asarray(_Texts(stream).load())
            array = np.asarray(np.lib.format.read_array(BytesIO(self._raw[name])))
            if array.dtype.kind == "U":
                array.tolist()  # Texts are checked only when they are looked at.
        except Exception as exc:
            # As above; headers are parsed as Python, texts are unpickled.
            raise DataError(f"{self.path}: {name} cannot be read ({exc})") from exc
        return array

    def numbers(self, name: str) -> Floats:
        """Return an array of finite numbers."""
        array = self.get(name)
        if array.dtype.kind not in "fiub":
            raise DataError(f"{self.path}: {name} must hold numbers, not {array.dtype}")
        values = array.astype(np.float64)
        if not np.isfinite(values).all():
            raise DataError(f"{self.path}: {name} holds numbers that are not finite")
        return values

    def check_shape(self, name: str, array: NDArray[Any], shape: tuple[int, ...]) -> None:
        """Refuse an array of another shape."""
        if array.shape != shape:
            raise DataError(f"{self.path}: {name} must be of shape {shape}, not {array.shape}")


class _Texts(pickle.Unpickler):
    """Reads an array of texts that numpy has pickled; refuses whatever else it would call."""

    _ALLOWED: ClassVar[frozenset[str]] = frozenset({"_reconstruct", "ndarray", "dtype"})

    def find_class(self, module: str, name: str) -> Any:
        """Return numpy's own constructors, and nothing else."""
        if module.partition(".")[0] == "numpy" and name in self._ALLOWED:
            return _numpy_constructor(name)
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed")


@functools.cache
def _numpy_constructor(name: str) -> Any:
    if name == "_reconstruct":
        return np.empty(0).__reduce__()[0]
    return {"ndarray": np.ndarray, "dtype": np.dtype}[name]
