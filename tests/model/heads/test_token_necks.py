"""Necks of sequences by hand, and that padding is never read."""

import torch
import torch.nn.functional as F

from exitlens.model.heads.token_necks import TokenNeck, fit_token_neck


def _unsettle(neck):
    for parameter in neck.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return neck


@torch.no_grad()
def test_token_neck_equals_its_layers():
    neck, x, early = _unsettle(TokenNeck(6, 5, lateral=3)), torch.randn(2, 6, 7), torch.randn(2, 3, 7)
    own, other = (inlet.norm(f.mT @ inlet.linear.weight.t()) for inlet, f in ((neck.inlet, x), (neck.lateral, early)))
    rows = F.relu(own + other)
    for mixer in neck.mixers:
        spread = F.conv1d(rows.mT, mixer.depthwise.weight, padding=2, groups=5).mT
        rows = F.relu(rows + mixer.second(mixer.linear(F.relu(mixer.first(spread)))))
    torch.testing.assert_close(neck(x, early), rows.mT)
    assert neck.fuse() is neck


@torch.no_grad()
def test_padding_is_never_read():
    neck, x = _unsettle(TokenNeck(6, 5)), torch.randn(1, 6, 7)
    keep = torch.tensor([[True] * 4 + [False] * 3])
    torch.testing.assert_close(neck(x, None, keep)[..., :4], neck(x[..., :4], None, keep[:, :4]))
    assert not torch.allclose(neck(x)[..., :4], neck(x, None, keep)[..., :4])


def test_a_token_neck_fits_its_budget():
    assert fit_token_neck(384, 32, 0).width == 8
    assert fit_token_neck(384, 32, 1e12).width == 256
    neck = fit_token_neck(50, 9, 9 * (40 * (50 + 20) + 2 * (5 * 40 + 40**2)), lateral=20)
    assert neck.width == 40
    assert neck(torch.zeros(1, 50, 9, dtype=torch.bfloat16), torch.zeros(1, 20, 9)).dtype == torch.float32
