import pytest
import torch

import exitlens as xl
from exitlens.model.backbones import SmallResNet


def test_small_network_takes_28_to_64_pixels_and_grey():
    for size in (28, 40, 64):
        assert SmallResNet(num_classes=5)(torch.randn(2, 3, size, size)).shape == (2, 5)
    assert xl.build_backbone("small", 3, in_channels=1)(torch.randn(2, 1, 28, 28)).shape == (2, 3)


def test_torchvision_by_name():
    assert xl.build_backbone("torchvision:resnet18", 6).fc.out_features == 6


@pytest.mark.parametrize(
    ("source", "channels", "pretrained", "message"),
    [
        ("resnet18", 3, False, "torchvision:resnet18"),
        ("torchvision:resnet19", 3, False, "Did you mean 'resnet1"),
        ("timm:resnet18", 3, False, "expected 'small' or"),
        ("torchvision:resnet18", 1, False, "3-channel"),
        ("small", 3, True, "no pretrained weights"),
    ],
)
def test_unknown_sources(source, channels, pretrained, message):
    with pytest.raises(xl.InputError, match=message):
        xl.build_backbone(source, 4, channels, pretrained)


def test_pretrained_offline_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def refuse(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    with pytest.raises(xl.InputError, match="not cached"):
        xl.build_backbone("torchvision:resnet18", 4, pretrained=True)
