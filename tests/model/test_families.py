"""One network of each family, narrow and with few blocks where it can be: cut, trained, its evidence exact."""

import pytest
import torch
from torchvision import models
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.efficientnet import MBConvConfig
from torchvision.models.regnet import BlockParams
from torchvision.models.resnet import Bottleneck

import exitlens as xl
from tests.model.kinds import check_outputs

pytestmark = pytest.mark.slow

BLOCKS = [MBConvConfig(*numbers) for numbers in ((1, 3, 1, 32, 16, 1), (6, 3, 2, 16, 24, 2), (6, 5, 2, 24, 40, 2))]
STAGES = [CNBlockConfig(*numbers, 1) for numbers in ((24, 48), (48, 96), (96, 192), (192, None))]


def make_timm(name, **options):
    return lambda: pytest.importorskip("timm").create_model(name, num_classes=5, img_size=64, **options)


SHALLOW = {
    "resnext": lambda: models.ResNet(Bottleneck, [1, 1, 1, 1], groups=32, width_per_group=4, num_classes=5),
    "densenet": lambda: models.DenseNet(32, (3, 4, 4, 3), num_classes=5),
    "efficientnet": lambda: models.EfficientNet(BLOCKS, 0.2, num_classes=5),
    "regnet": lambda: models.RegNet(
        BlockParams([1, 1, 2, 2], [48, 104, 208, 440], [8] * 4, [1.0] * 4, [2] * 4, 0.25), num_classes=5
    ),
    "googlenet with auxiliary answers": lambda: models.googlenet(num_classes=5, init_weights=False),
    "convnext": lambda: models.ConvNeXt(STAGES, num_classes=5),
    "swin": lambda: models.SwinTransformer([4, 4], 24, [1, 1, 2, 1], [1, 2, 4, 8], [7, 7], num_classes=5),
    "vit": make_timm("vit_tiny_patch16_224", depth=3),
    "mixer": make_timm("mixer_s32_224"),
}
TORCHVISION = [f"torchvision:{name}" for name in ("shufflenet_v2_x0_5", "squeezenet1_1", "mobilenet_v3_small")]


@pytest.mark.parametrize("source", [*SHALLOW, *TORCHVISION, "timm:poolformer_s12"])
def test_a_family_is_cut_trains_and_explains(source):
    x = torch.randn(2, 3, 64, 64)
    net = xl.attach(SHALLOW[source]() if source in SHALLOW else source, 2, 5, x)
    outs = net.train()(x)
    assert net.head_share < 0.05
    xl.EGTLoss()(outs, torch.tensor([0, 4])).total.backward()
    assert all(out.logits.shape == (2, 5) for out in outs)
    net.eval()
    with torch.no_grad():
        check_outputs(net(x), net.heads)
