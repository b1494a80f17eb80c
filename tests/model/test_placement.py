import pytest
import torch
from torch import nn
from torchvision import models

import exitlens as xl
from exitlens.model.backbones import SmallResNet
from exitlens.model.placement import place_exits
from tests.conftest import TinyNet


def test_points_of_a_tiny_network_by_hand():
    points = {p.name: p for p in xl.exit_points(TinyNet(), torch.zeros(1, 3, 16, 16))}
    plain = 8 * 8 * 6 * 27 + 4 * 4 * 8 * 54 + 4 * 4 * 10 * 72 + 40
    assert points["a"].macs == 8 * 8 * 6 * 27
    assert points["a"].shape == (6, 8, 8)
    assert points["b"].cost == pytest.approx((8 * 8 * 6 * 27 + 4 * 4 * 8 * 54) / plain)
    assert "c" not in points  # there the final exit answers
    shares = [p.time_share for p in points.values()]
    assert shares == sorted(shares)


def test_the_middle_of_a_residual_block_is_no_place():
    names = [p.name for p in xl.exit_points(models.resnet18(), torch.zeros(1, 3, 64, 64))]
    assert {"layer1", "layer1.0", "layer2", "layer3", "layer4.0"} <= set(names)
    assert not [name for name in names if "conv" in name and name != "conv1"]


def test_equal_shares_of_cost():
    backbone = SmallResNet()
    points = {p.name: p.cost for p in xl.exit_points(backbone, torch.zeros(1, 3, 40, 40))}
    names = place_exits(backbone, torch.zeros(1, 3, 40, 40), 3)
    assert len(names) == 3
    for k, name in enumerate(names):
        best = min(abs(cost - (k + 1) / 4) for cost in points.values())
        assert abs(points[name] - (k + 1) / 4) == pytest.approx(best)
    net = xl.attach(backbone, 3, 10, torch.zeros(1, 3, 40, 40))
    assert net.info.at == tuple(names)
    assert net.num_exits == 4


def test_impossible_numbers_of_exits():
    with pytest.raises(xl.AttachError, match="99 early exits do not fit"):
        xl.attach(TinyNet(), 99, 4, torch.zeros(1, 3, 16, 16))
    with pytest.raises(xl.InputError, match="positive"):
        xl.attach(TinyNet(), 0, 4, torch.zeros(1, 3, 16, 16))
    with pytest.raises(xl.InputError, match="at: expected"):
        xl.attach(TinyNet(), True, 4, torch.zeros(1, 3, 16, 16))


def test_measuring_leaves_the_backbone_alone():
    backbone = nn.Sequential(TinyNet()).train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    xl.exit_points(backbone, torch.zeros(2, 3, 16, 16))
    assert backbone.training
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
