import torch

import exitlens as xl
from exitlens.model.backbones.small import SmallResNet


def test_small_network_takes_28_to_64_pixels_and_grey():
    for size in (28, 40, 64):
        assert SmallResNet(num_classes=5)(torch.randn(2, 3, size, size)).shape == (2, 5)
    assert xl.build_backbone("small", 3, in_channels=1)(torch.randn(2, 1, 28, 28)).shape == (2, 3)
