"""The lexical encoder: the same text gives the same numbers, whatever stands beside it."""

import numpy as np
import pytest

from policy.lexical import CHARACTERS_MAX, LexicalEncoder, default_encoder, fit, loads

PROMPTS = [f"topic {i % 7} asks question {i} about area {i % 11} in words" for i in range(60)]


@pytest.fixture(scope="module")
def encoder() -> LexicalEncoder:
    return fit(PROMPTS, dimensions=8, buckets=512)


def test_shipped_encoder_has_the_documented_shape_and_size():
    shipped = default_encoder()
    assert shipped.dimensions == 64
    assert len(shipped.dumps()) < 600_000
    features = shipped.encode(["How many apples has Tom?", "def f(x): return x"])
    assert features.shape == (2, 64)
    assert (features.astype(np.float32) == features).all()
    assert 0.1 < np.linalg.norm(features[0]) <= 1.01


def test_shipped_encoder_tells_code_from_sums():
    shipped = default_encoder()
    code, code2, sums, sums2 = shipped.encode(
        [
            "def f(items, key): return sorted(items, key=key) what does f return",
            "def f(text): return text.split() what does the function f return",
            "Anna bought 12 apples at 3 dollars each, how many dollars did she spend",
            "Ben sold 7 books for 4 dollars each, how many dollars does he have",
        ]
    )
    assert code @ code2 > code @ sums
    assert sums @ sums2 > sums @ code2


def test_row_does_not_depend_on_its_batch(encoder):
    together = encoder.encode(PROMPTS)
    alone = np.vstack([encoder.encode([prompt]) for prompt in PROMPTS])
    assert (together == alone).all()


def test_round_trip_keeps_version_and_numbers(encoder):
    copy = loads(encoder.dumps())
    assert copy.version == encoder.version
    assert copy.dumps() == encoder.dumps()
    assert (copy.encode(PROMPTS) == encoder.encode(PROMPTS)).all()


def test_version_names_the_numbers(encoder):
    assert fit(PROMPTS, dimensions=8, buckets=512).version == encoder.version
    assert fit(PROMPTS[:40], dimensions=8, buckets=512).version != encoder.version


@pytest.mark.parametrize("prompt", ["", "?!", "\x00\ud7ff", "x" * 10])
def test_odd_text_gives_finite_features(encoder, prompt):
    assert np.isfinite(encoder.encode([prompt])).all()


def test_work_is_bounded_by_the_first_characters(encoder):
    long = "topic 1 " * CHARACTERS_MAX
    assert (encoder.encode([long]) == encoder.encode([long[:CHARACTERS_MAX]])).all()


def test_empty_batch(encoder):
    assert encoder.encode([]).shape == (0, 8)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04broken", b"\x93NUMPY"])
def test_foreign_bytes_are_refused(data):
    with pytest.raises(ValueError, match="not an encoder"):
        loads(data)


def test_too_few_prompts_are_refused():
    with pytest.raises(ValueError, match="more prompts"):
        fit(PROMPTS[:8], dimensions=8)


def test_wrong_scales_are_refused():
    with pytest.raises(ValueError, match="finite"):
        LexicalEncoder(np.zeros((1, 4), np.int8), np.array([np.nan], np.float32))
