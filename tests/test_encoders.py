"""Encoders by version: what a decision names is what made its features, here and elsewhere."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from policy import lexical
from policy.catalog import Catalog
from policy.money import Price
from policy.registry import make_policy
from policy.terms import Arm, Contexts, Learning, Policy, Settings
from streams.__main__ import build_cli
from streams.encoders import EncoderError, Encoders, read_encoder
from streams.following import apply_entry
from streams.records import BadRecordError, PolicyEntry, decode_catalog, encode

PROMPTS = [f"topic {i % 7} asks question {i} about area {i % 11} in words" for i in range(60)]
NAME = "lexical-0123456789ab"


def catalog(encoder: str, dimensions: int) -> Catalog:
    return apply_entry(Catalog(), PolicyEntry(encoder=encoder, dimensions=dimensions))


@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_a_refitted_encoder_is_found_by_its_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    file = (tmp_path / "prompts").with_suffix(suffix)
    lines = [json.dumps({"prompt": p}) if suffix == ".jsonl" else p for p in PROMPTS]
    file.write_text("\n".join(lines))
    monkeypatch.setenv("TOLLWAY_ENCODERS", str(tmp_path / "encoders"))
    done = CliRunner().invoke(
        build_cli("encoder"), ["encoder", "fit", str(file), "--dimensions", "8"]
    )
    assert done.exit_code == 0, done.output
    version = done.stdout.partition(":")[0]
    encoders = Encoders(tmp_path / "encoders")
    assert encoders.features(catalog(version, 8)) == version
    found = encoders.get(catalog(version, 8))
    assert found is not None
    assert found.encode(PROMPTS[:1]).any()
    with pytest.raises(EncoderError, match="wants 16 features"):
        encoders.get(catalog(version, 16))


def test_a_command_says_which_line_has_no_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOLLWAY_ENCODERS", str(tmp_path / "encoders"))
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a"}\n{"text": "b"}\n')
    done = CliRunner().invoke(build_cli("encoder"), ["encoder", "fit", str(file)])
    assert done.exit_code == 2
    assert "line 2 has no prompt" in done.output


def test_an_encoder_is_found_by_the_name_that_decisions_have_for_it(tmp_path: Path) -> None:
    encoders = Encoders(tmp_path)
    shipped = lexical.default_encoder()
    found = encoders.of_version(shipped.version).encode(["a prompt"])
    assert found.tolist() == shipped.encode(["a prompt"]).tolist()
    with pytest.raises(EncoderError, match="lexical-000000000000"):
        encoders.of_version("lexical-000000000000")


def test_an_encoder_makes_the_features_beside_the_segments(tmp_path: Path) -> None:
    entry = PolicyEntry(encoder="lexical", segments=["code", "maths"], segment_weight=0.7)
    found = apply_entry(Catalog(), entry)
    assert Encoders(tmp_path).get(found) is not None
    assert found.settings.dimensions == 66
    assert found.settings.features.startswith("+segments-")


def test_an_encoder_that_is_not_there_or_another_is_refused(tmp_path: Path) -> None:
    encoders = Encoders(tmp_path)
    with pytest.raises(EncoderError, match="tollway encoder add"):
        encoders.get(catalog(NAME, 8))
    (tmp_path / f"{NAME}.npz").write_bytes(lexical.fit(PROMPTS, dimensions=8).dumps())
    with pytest.raises(EncoderError, match="not what its name says"):
        encoders.get(catalog(NAME, 8))
    (tmp_path / "empty").mkdir()
    with pytest.raises(EncoderError, match="neither"):
        encoders.add(tmp_path / "empty")


def test_who_sends_vectors_needs_no_encoder(tmp_path: Path) -> None:
    encoders = Encoders(tmp_path)
    assert encoders.features(catalog("none", 8)) == "given"
    assert encoders.features(catalog("lexical", 8)) == "given"
    assert encoders.features(catalog("lexical", 64)).startswith("lexical-")


@pytest.mark.parametrize("name", ["other", "lexical-12", "../lexical-0123456789ab"])
def test_a_name_that_is_no_version_is_refused(name: str) -> None:
    with pytest.raises(BadRecordError):
        decode_catalog(encode(PolicyEntry(encoder=name)))


def test_another_encoder_is_another_policy() -> None:
    assert catalog(NAME, 8).settings != catalog("lexical", 8).settings
    assert catalog("none", 8).settings == catalog("lexical", 8).settings


def test_a_model2vec_model_is_read_from_its_folder(tmp_path: Path) -> None:
    model2vec = pytest.importorskip("model2vec")
    tokenizers = pytest.importorskip("tokenizers")
    words = sorted({word for prompt in PROMPTS for word in prompt.split()} | {"[UNK]"})
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    vectors = np.random.default_rng(0).normal(size=(len(words), 5)).astype(np.float32)
    model = model2vec.StaticModel(vectors=vectors, tokenizer=tokenizer)
    model.save_pretrained(tmp_path / "model")
    check_model(tmp_path, "model2vec", 5)


def test_a_sentence_transformer_needs_its_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    modules = [{"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(EncoderError, match=r"extra of Tollway.*sentence_transformers"):
        Encoders(tmp_path / "encoders").add(tmp_path)


def check_model(tmp_path: Path, library: str, dimensions: int) -> None:
    encoders = Encoders(tmp_path / "encoders")
    added = encoders.add(tmp_path / "model")
    assert added.version.startswith(f"{library}-")
    again = Encoders(tmp_path / "encoders")
    found = again.get(catalog(added.version, dimensions))
    assert found is not None
    together = found.encode([*PROMPTS, ""])
    assert together.shape == (len(PROMPTS) + 1, dimensions)
    assert np.isfinite(together).all()
    alone = np.vstack([read_encoder(tmp_path / "model").encode([prompt]) for prompt in PROMPTS[:3]])
    assert (together[:3] == alone).all()
    assert (alone[0] != alone[1]).any()
    (tmp_path / "encoders" / added.version / "more.txt").write_text("another model")
    with pytest.raises(EncoderError, match="not what its name says"):
        Encoders(tmp_path / "encoders").get(catalog(added.version, dimensions))


def taught(policy: str, features: str) -> tuple[Policy, Contexts]:
    """Return a policy that has seen one arm earn 0.9 with x = 1 and 0.5 with x = -1."""
    made = make(policy, features)
    rng = np.random.default_rng(1)
    for number in range(400):
        x = float(rng.choice([-1.0, 1.0]))
        learning = Learning(
            arm="a", features=np.array([x, rng.normal(), 1.0]), input_tokens=10, age=0,
            reward=0.7 + 0.2 * x, output_tokens=100 + number % 5,
        )  # fmt: skip
        made.learn(learning)
    ones = np.ones(2, np.int64)
    contexts = Contexts(
        features=np.array([[1.0, 0.0, 1.0], [-1.0, 0.0, 1.0]]),
        input_tokens=ones, max_output_tokens=1_000 * ones, seeds=ones.astype(np.uint64),
    )  # fmt: skip
    return made, contexts


def make(policy: str, features: str) -> Any:
    made = make_policy(Settings(policy=policy, dimensions=2, features=features))
    made.set_arms((Arm(arm="a", price=Price(version=1, input=1_000, output=1_000)),))
    return made


def rewards(policy: Policy, contexts: Contexts) -> list[float]:
    ranking = policy.rank(
        contexts, dual_price=np.zeros(2), eligible=np.ones((2, 1), np.bool_)
    )  # fmt: skip
    return ranking.reward[:, 0].tolist()


@pytest.mark.parametrize("policy", ["pareto", "port"])
def test_of_what_was_learned_from_other_features_the_means_stay(policy: str) -> None:
    old, contexts = taught(policy, "")
    high, low = rewards(old, contexts)
    assert high > 0.85
    assert low < 0.55
    new = make(policy, NAME)
    new.load("a", old.dump("a"))
    assert rewards(new, contexts) == pytest.approx([0.7, 0.7], abs=0.03)
    same = make(policy, NAME)
    same.load("a", taught(policy, NAME)[0].dump("a"))
    assert rewards(same, contexts) == pytest.approx([high, low])


def test_other_features_of_another_partition_are_not_merged() -> None:
    with pytest.raises(ValueError, match="other features"):
        make("pareto", NAME).merge("a", 1, taught("pareto", "")[0].dump("a"))
