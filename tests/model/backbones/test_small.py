import pytest
import torch

import exitlens as xl
from exitlens.modalities import SERIES, TEXT, VECTOR, VOLUME
from exitlens.model.backbones.small import SmallResNet


def test_small_network_takes_28_to_64_pixels_and_grey():
    for size in (28, 40, 64):
        assert SmallResNet(num_classes=5)(torch.randn(2, 3, size, size)).shape == (2, 5)
    assert xl.build_backbone("small", 3, in_channels=1)(torch.randn(2, 1, 28, 28)).shape == (2, 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "modality"), [((2, 64), SERIES), ((1, 16, 16, 16), VOLUME), ((7,), VECTOR)], ids=["series", "volume", "vector"]
)
def test_small_networks_of_other_kinds(shape, modality, tmp_path):
    inputs = torch.randn(4, *shape)
    net = xl.attach("small", ["layer1", "layer2"], 3, inputs).eval()
    assert net.info.modality is modality
    assert [out.logits.shape for out in net(inputs)] == [(4, 3)] * 3
    assert not any(any(offsets) for offsets in net.info.map_offsets)
    xl.save(net, None, tmp_path / "b")
    again, _ = xl.load(tmp_path / "b")
    assert torch.equal(again(inputs)[1].logits, net(inputs)[1].logits)


def test_sources_are_for_their_kind_of_input():
    with pytest.raises(xl.errors.InputError, match="'small' does not take texts"):
        xl.build_backbone("small", 3, modality=TEXT)
    with pytest.raises(xl.errors.InputError, match=r"torchvision:resnet18 does not take series\. Fix: use 'small'"):
        xl.build_backbone("torchvision:resnet18", 3, modality=SERIES)
