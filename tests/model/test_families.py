"""One small network of each family: it is cut (probed by attach), trains, and its evidence is exact."""

import pytest
import torch

import exitlens as xl

QUICK = ("torchvision:shufflenet_v2_x0_5", 64)
FAMILIES = [
    ("torchvision:resnext50_32x4d", 64),
    ("torchvision:densenet121", 64),
    ("torchvision:vgg11", 64),
    ("torchvision:squeezenet1_1", 64),
    ("torchvision:mobilenet_v3_small", 64),
    ("torchvision:efficientnet_b0", 64),
    ("torchvision:regnet_y_400mf", 64),
    ("torchvision:convnext_tiny", 64),
    ("torchvision:swin_t", 64),
    ("timm:vit_tiny_patch16_224", 224),
    ("timm:efficientnet_lite0", 64),
    ("timm:mixer_s32_224", 224),
    ("timm:poolformer_s12", 64),
]


@pytest.mark.parametrize(("source", "size"), [QUICK, *(pytest.param(*one, marks=pytest.mark.slow) for one in FAMILIES)])
def test_a_family_is_cut_trains_and_explains(source, size):
    pytest.importorskip("timm")
    x = torch.randn(2, 3, size, size)
    net = xl.attach(source, 2, 5, x)
    outs = net.train()(x)
    assert net.head_share < 0.05
    xl.EGTLoss()(outs, torch.tensor([0, 4])).total.backward()
    assert all(out.logits.shape == (2, 5) for out in outs)
    net.eval()
    with torch.no_grad():
        for k, out in enumerate(net(x)):
            total = out.evidence.flatten(2).sum(2) + net.head(k).classifier.bias
            torch.testing.assert_close(total, out.logits, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(out.attention.flatten(1).sum(1), torch.ones(2))
