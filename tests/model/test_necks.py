"""Necks by hand, and how wide they may be."""

import torch
import torch.nn.functional as F
from torch import nn

from exitlens.model.necks import ContextNeck, fit_neck


def test_context_neck_equals_its_layers():
    neck = ContextNeck(6, 6, shrink=2).eval()
    for norm in [m for m in neck.modules() if isinstance(m, nn.BatchNorm2d)]:
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    x = torch.randn(2, 6, 8, 8)

    def step(x, s, groups=1):
        conv = F.conv2d(x, s.conv.weight, padding=s.conv.weight.shape[-1] // 2, groups=groups)
        n = s.norm
        return F.relu(F.batch_norm(conv, n.running_mean, n.running_var, n.weight, n.bias))

    with torch.no_grad():
        expected = step(F.avg_pool2d(x, 2), neck.inlet)
        for wide, deep in zip(neck.mixers[::2], neck.mixers[1::2], strict=True):
            expected = step(step(expected, wide, 6), deep)
        out = neck(x)
        torch.testing.assert_close(out, expected)
        assert out.shape == (2, 6, 4, 4)
        torch.testing.assert_close(neck.fuse()(x), out, rtol=1e-4, atol=1e-5)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in neck.modules())


def test_necks_fit_their_budget_and_the_final_grid():
    neck = fit_neck(96, (20, 20), (10, 10), budget=100 * (96 * 40 + 2 * (25 * 40 + 40**2)))
    assert (neck.shrink, neck.channels) == (2, 40)
    assert fit_neck(96, (20, 20), (10, 10), budget=1e12).channels == 96
    assert fit_neck(512, (7, 7), (7, 7), budget=1e12).channels == 256
    assert fit_neck(6, (7, 7), (3, 3), budget=0).shrink == 1
    assert fit_neck(6, (8, 8), (4, 4), budget=0).channels == 6
