"""Necks by hand, and how wide they may be."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from exitlens.model.heads.necks import ContextNeck, enlarge, find_spread, fit_neck


def _unsettle(neck):
    for norm in [m for m in neck.modules() if isinstance(m, nn.BatchNorm2d)]:
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    return neck.eval()


def _step(x, s, **how):
    n = s.norm
    return F.batch_norm(F.conv2d(x, s.conv.weight, **how), n.running_mean, n.running_var, n.weight, n.bias)


def _mix(x, neck, width):
    for mixer in neck.mixers:
        x = F.relu(x + _step(F.relu(_step(x, mixer.depthwise, padding=2, groups=width)), mixer.pointwise))
    return x


@torch.no_grad()
def test_context_neck_equals_its_layers():
    neck, x = _unsettle(ContextNeck(6, 5, shrink=2)), torch.randn(2, 6, 8, 8)
    out = neck(x)
    torch.testing.assert_close(out, _mix(F.relu(_step(x, neck.inlet, stride=2)), neck, 5))
    assert out.shape == (2, 5, 4, 4)
    torch.testing.assert_close(neck.fuse()(x), out, rtol=1e-4, atol=1e-5)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in neck.modules())


@torch.no_grad()
def test_a_neck_with_a_lateral_map_adds_the_enlarged_features():
    neck, deep, fine = _unsettle(ContextNeck(6, 5, lateral=3)), torch.randn(2, 6, 4, 4), torch.randn(2, 3, 7, 8)
    out = neck(deep, fine)
    enlarged = torch.nn.Upsample((7, 8), mode="bilinear")(_step(deep, neck.inlet))
    torch.testing.assert_close(out, _mix(F.relu(enlarged + _step(fine, neck.lateral)), neck, 5))
    torch.testing.assert_close(neck.fuse()(deep, fine), out, rtol=1e-4, atol=1e-5)


def test_spreading_is_enlarging():
    x = torch.randn(2, 3, 4, 5)
    spread = find_spread((4, 5), (7, 9), x)
    torch.testing.assert_close((x.flatten(2) @ spread.t()).view(2, 3, 7, 9), enlarge(x, (7, 9)))
    torch.testing.assert_close(spread.sum(1), torch.ones(63))


@pytest.mark.parametrize("shrink", [1, 2, 4])
def test_a_neck_stays_centred(shrink):
    neck = _unsettle(ContextNeck(1, 16, shrink))
    x = torch.zeros(1, 1, 36, 36, requires_grad=True)
    out = neck(x)
    middle = out.shape[2] // 2
    x_gradient = torch.autograd.grad(out[0, :, middle, middle].sum(), x)[0].abs()[0, 0]
    touched = x_gradient.sum(0).nonzero().flatten().float()
    assert touched.mean().item() == middle * shrink + (shrink - 1) / 2


def test_necks_fit_their_budget_and_the_grid():
    neck = fit_neck(24, (20, 20), (10, 10), budget=100 * (4 * 24 * 40 + 2 * (25 * 40 + 40**2)))
    assert (neck.shrink, neck.width) == (2, 40)
    assert fit_neck(6, (7, 7), (7, 7), budget=1e12).width == 256
    assert fit_neck(6, (7, 7), (3, 3), budget=0).shrink == 1
    assert fit_neck(6, (8, 8), (4, 4), budget=0).width == 8
    lateral = fit_neck(100, (4, 4), (8, 8), budget=40 * (16 * 100 + 64 * 30) + 2 * 64 * (25 * 40 + 40**2), lateral=30)
    assert (lateral.shrink, lateral.width) == (1, 40)
