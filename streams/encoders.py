"""What makes features of prompts: the shipped encoder, refitted ones, and models in local folders.

The catalog names an encoder: ``none``, ``lexical`` for the shipped one, or a version, which is
looked for in the folder of encoders: ``lexical-….npz`` is one that :func:`policy.lexical.fit` made,
``model2vec-…`` and ``sentence-transformers-…`` are folders as those libraries save them (extras of
the same names). A version is a hash of the numbers, so that what a decision names is what made its
features, on every machine. Nothing is ever downloaded.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from policy.catalog import Catalog
from policy.terms import Floats
from streams.intake import Intake

NONE, SHIPPED = "none", "lexical"
CHARACTERS_MAX = 20_000
"""Only the first characters of a prompt are read, so that one request's work is bounded."""


class EncoderError(Exception):
    """An encoder is not there, or not the one that is asked for."""

    exit_code = 78


class Encoder(Protocol):
    """Turns prompts into numbers; a prompt's row does not depend on the others."""

    version: str

    @property
    def dimensions(self) -> int:
        """Number of features, without a constant."""

    def encode(self, prompts: Sequence[str]) -> Floats:
        """Return the features, shape (n, dimensions)."""


class ModelEncoder:
    """A model that another library reads from a folder.

    Parameters
    ----------
    library : {"model2vec", "sentence-transformers"}
    folder : Path
    """

    def __init__(self, library: str, folder: Path) -> None:
        self._model = _LOADERS[library](folder)
        self.version = f"{library}-{_digest(folder)}"
        self.dimensions = len(self._row("a prompt"))

    def encode(self, prompts: Sequence[str]) -> Floats:
        """Return the features of each prompt, exactly representable as float32."""
        rows = [self._row(prompt) for prompt in prompts]
        return np.array(rows, np.float64).reshape(len(rows), self.dimensions)

    def _row(self, prompt: str) -> Floats:
        # One by one: padded to the longest of a batch, a prompt would get other last digits.
        found = np.asarray(self._model.encode([prompt[:CHARACTERS_MAX]]), np.float32)
        row: Floats = np.nan_to_num(found[0]).astype(np.float64)
        return row


def read_encoder(path: Path) -> Encoder:
    """Return the encoder in a file or folder.

    Raises
    ------
    EncoderError
        If it is none, or the library that reads it is not installed.
    """
    from policy import lexical

    try:
        if path.is_file():
            return lexical.loads(path.read_bytes())
        return ModelEncoder(_library(path), path)
    except ImportError as exc:
        raise EncoderError(f"{path}: needs an extra of Tollway: {exc}") from None
    except (OSError, ValueError) as exc:
        raise EncoderError(f"{path}: {exc}") from exc


class Encoders:
    """The encoders that catalogs name; each is read when it is first asked for.

    Parameters
    ----------
    folder : Path
        Where refitted encoders and models lie, by version.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[str, Encoder] = {}

    def intake(self, catalog: Catalog) -> Intake:
        """Return what reads records under this catalog."""
        encoder = self.get(catalog)
        return Intake(catalog, None if encoder is None else encoder.encode)

    def features(self, catalog: Catalog) -> str:
        """Return the name of the features, as decisions carry it."""
        encoder = self.get(catalog)
        return "given" if encoder is None else encoder.version

    def get(self, catalog: Catalog) -> Encoder | None:
        """Return the catalog's encoder; None if only vectors are taken.

        Raises
        ------
        EncoderError
            If there is no such encoder, or it makes another number of features.
        """
        name, wanted = catalog.encoder, catalog.settings.given
        if name == NONE:
            return None
        encoder = self._read.get(name)
        if encoder is None:
            encoder = self._read[name] = self._find(name)
        if encoder.dimensions == wanted:
            return encoder
        if name == SHIPPED:
            # It is the default: who wants another number of features sends vectors.
            return None
        raise EncoderError(
            f"the catalog wants {wanted} features, {name} makes {encoder.dimensions}"
        )

    def of_version(self, version: str) -> Encoder:
        """Return the encoder that decisions name so; :class:`EncoderError` if it is not there."""
        shipped = self._read.setdefault(SHIPPED, self._find(SHIPPED))
        return shipped if version == shipped.version else self._find(version)

    def add(self, path: Path) -> Encoder:
        """Copy an encoder into the folder under its version; return it."""
        encoder = read_encoder(path)
        target = self._path(encoder.version)
        if not target.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            part = target.with_name(f".{target.name}.part")
            if path.is_file():
                shutil.copyfile(path, part)
            else:
                shutil.rmtree(part, ignore_errors=True)
                shutil.copytree(path, part)
            part.rename(target)
        return encoder

    def _find(self, name: str) -> Encoder:
        if name == SHIPPED:
            # Most deployments send vectors; scikit-learn takes seconds to import.
            from policy.lexical import default_encoder

            return default_encoder()
        path = self._path(name)
        if not path.exists():
            raise EncoderError(f"no encoder {name} in {self._folder}: tollway encoder add PATH")
        encoder = read_encoder(path)
        if encoder.version != name:
            raise EncoderError(f"{path} is {encoder.version}, not what its name says")
        return encoder

    def _path(self, version: str) -> Path:
        return self._folder / (f"{version}.npz" if version.startswith("lexical-") else version)


def _library(folder: Path) -> str:
    """Return which library reads a folder: tables of words are model2vec's, whoever saved them."""
    config, modules = (_json(folder / name) for name in ("config.json", "modules.json"))
    if isinstance(config, dict) and config.get("model_type") == "model2vec":
        return "model2vec"
    if not isinstance(modules, list) or not all(isinstance(part, dict) for part in modules):
        raise ValueError("neither an .npz nor a model of model2vec or sentence-transformers")
    static = [str(part.get("type")).endswith(".StaticEmbedding") for part in modules]
    return "model2vec" if static == [True] else "sentence-transformers"


def _json(path: Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else None


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix().encode()
        digest.update(hashlib.sha256(name).digest() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]


def _model2vec(folder: Path) -> Any:
    return importlib.import_module("model2vec").StaticModel.from_pretrained(folder)


def _sentence_transformers(folder: Path) -> Any:
    library = importlib.import_module("sentence_transformers")
    return library.SentenceTransformer(str(folder), device="cpu", local_files_only=True)


_LOADERS = {"model2vec": _model2vec, "sentence-transformers": _sentence_transformers}
