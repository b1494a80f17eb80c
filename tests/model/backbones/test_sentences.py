"""Sentence encoders: pooling, their record in a bundle, and how they are built from directories."""

import json

import pytest
import torch
import torch.nn.functional as F

import exitlens as xl
from exitlens.model.backbones.build import read_config
from exitlens.model.backbones.sentences import Sentences
from tests.texts import config_values, make_bert, make_texts


@pytest.fixture(scope="module")
def texts():
    return make_texts(4)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_vectors_have_norm_1_and_ignore_padding(texts, pooling):
    encoder = make_bert().bert.eval()
    vectors, tokens = Sentences(encoder, pooling).eval()(**texts), encoder(**texts)[0]
    assert torch.allclose(vectors.norm(dim=1), torch.ones(4))
    real = tokens[1, :2]  # the second text has two tokens
    assert torch.allclose(vectors[1], F.normalize(real.mean(0) if pooling == "mean" else real[0], dim=0), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_bundle_holds_the_encoder(texts, pooling, tmp_path):
    net = xl.attach(
        Sentences(make_bert().bert, pooling).eval(), ["encoder.encoder.layer.0"], 16, texts, task="embedding", final="keep"
    )
    assert net.info.config["pooling"] == pooling
    xl.save(net, None, tmp_path / "bundle")
    again, _ = xl.load(tmp_path / "bundle")
    assert all(torch.equal(a.logits, b.logits) for a, b in zip(net(texts), again(texts), strict=True))


def test_no_classes_make_an_encoder(texts, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config_values()))
    encoder = xl.build_backbone(f"hf:{tmp_path}", 0)
    assert isinstance(encoder, Sentences)
    assert not encoder.training
    assert encoder(**texts).shape == (4, 16)
    assert read_config(encoder)["pooling"] == "mean"
    assert read_config(Sentences(torch.nn.Identity())) is None
