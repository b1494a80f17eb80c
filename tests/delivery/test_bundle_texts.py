"""Bundles of networks that take texts."""

import torch

import exitlens as xl
from tests.texts import AT, make_bert, make_text_net, make_texts


def test_a_bundle_needs_no_backbone(tmp_path):
    net, texts = make_text_net(), make_texts()
    assert net.info.source == "hf:"
    back, policy = xl.load(xl.save(net, xl.Policy((0.5, 0.5)), tmp_path / "b"))
    assert policy == xl.Policy((0.5, 0.5))
    assert back.info == net.info
    for a, b in zip(net(texts), back(texts), strict=True):
        assert torch.equal(a.logits, b.logits)
        assert torch.equal(a.attention, b.attention)


def test_a_kept_classifier_travels(tmp_path):
    plain, texts = make_bert().eval(), make_texts()
    net = xl.attach(plain, AT, 3, texts, final="keep").eval()
    back, _ = xl.load(xl.save(net, None, tmp_path / "b"))
    assert torch.equal(back(texts)[-1].logits, plain(**texts).logits)
