"""Networks of segmentation_models_pytorch get exits in their encoders."""

import pytest
import torch

import exitlens as xl

smp = pytest.importorskip("segmentation_models_pytorch")


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "at"), [("Unet", ["encoder.layer1", "encoder.layer3"]), ("FPN", 2)])
def test_kept_logits_are_the_networks(kind, at):
    torch.manual_seed(0)
    plain = getattr(smp, kind)("resnet18", encoder_weights=None, classes=5).eval()
    net = xl.attach(plain, at, 5, torch.zeros(1, 3, 64, 64), final="keep")
    images = torch.randn(2, 3, 64, 64)
    outs = net(images)
    assert torch.equal(outs[-1].logits, plain(images))
    assert [out.logits.shape for out in outs] == [(2, 5, 64, 64)] * 3
    assert 0 < net.head_share < 0.05
    data = torch.utils.data.TensorDataset(images, torch.randint(0, 5, (2, 64, 64)))
    xl.fit(net, data, data, epochs=1, progress=False)
    pred = xl.predict(net, images, xl.Policy((0.0, 0.0), score="mean_probability"))
    assert pred.labels.shape == (2, 64, 64)
