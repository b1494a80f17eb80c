"""Necks of images, sequences and groups of features."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import exitlens as xl
from exitlens.model.heads import (
    ContextNeck,
    GroupNeck,
    TokenNeck,
    check_groups,
    enlarge,
    find_spread,
    fit_group_neck,
    fit_neck,
    fit_token_neck,
)


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


def _redraw(neck):
    for parameter in neck.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return neck


@torch.no_grad()
def test_token_neck_equals_its_layers():
    neck, x, early = _redraw(TokenNeck(6, 5, lateral=3)), torch.randn(2, 6, 7), torch.randn(2, 3, 7)
    own, other = (inlet.norm(f.mT @ inlet.linear.weight.t()) for inlet, f in ((neck.inlet, x), (neck.lateral, early)))
    rows = F.relu(own + other)
    for mixer in neck.mixers:
        spread = F.conv1d(rows.mT, mixer.depthwise.weight, padding=2, groups=5).mT
        rows = F.relu(rows + mixer.second(mixer.linear(F.relu(mixer.first(spread)))))
    torch.testing.assert_close(neck(x, early), rows.mT)
    assert neck.fuse() is neck


@torch.no_grad()
def test_padding_is_never_read():
    neck, x = _redraw(TokenNeck(6, 5)), torch.randn(1, 6, 7)
    keep = torch.tensor([[True] * 4 + [False] * 3])
    torch.testing.assert_close(neck(x, None, keep)[..., :4], neck(x[..., :4], None, keep[:, :4]))
    assert not torch.allclose(neck(x)[..., :4], neck(x, None, keep)[..., :4])


def test_a_token_neck_fits_its_budget():
    assert fit_token_neck(384, 32, 0).width == 8
    assert fit_token_neck(384, 32, 1e12).width == 256
    neck = fit_token_neck(50, 9, 9 * (40 * (50 + 20) + 2 * (5 * 40 + 40**2)), lateral=20)
    assert neck.width == 40
    assert neck(torch.zeros(1, 50, 9, dtype=torch.bfloat16), torch.zeros(1, 20, 9)).dtype == torch.float32


GROUPS = (("a", (0, 2)), ("b", (3,)))


@torch.no_grad()
def test_a_group_neck_equals_its_layers():
    torch.manual_seed(0)
    neck, hidden, vector = GroupNeck(5, 4, GROUPS, 3), torch.randn(2, 5, 1), torch.randn(2, 4, 1)
    rows = []
    for reader, members in zip(neck.readers, ([0, 2], [3]), strict=True):
        read = vector[:, members, 0] @ reader.weight.t() + reader.bias
        x = F.relu(read + hidden[..., 0] @ neck.inlet.weight.t())
        rows.append(F.relu(x + x @ neck.mixer.weight.t() + neck.mixer.bias))
    torch.testing.assert_close(neck(hidden, vector), torch.stack(rows, 2))
    assert neck.fuse() is neck
    assert not neck.keeps_features


@torch.no_grad()
def test_by_numbers():
    """Hidden 1, features 2 and 3, all weights 1 and no bias: a group adds its features to 1, and the mixer doubles that."""
    neck = GroupNeck(1, 2, (("a", (0,)), ("b", (1,))), 1)
    for name, parameter in neck.named_parameters():
        parameter.fill_(0.0 if "bias" in name else 1.0)
    assert neck(torch.ones(1, 1, 1), torch.tensor([[[2.0], [3.0]]])).tolist() == [[[6.0, 8.0]]]


def test_the_width_fits_a_budget():
    assert fit_group_neck(12, 6, GROUPS, 0).width == 8
    assert fit_group_neck(12, 6, GROUPS, 1e12).width == 256
    assert fit_group_neck(12, 6, GROUPS, 24 * (12 + 6) + 2 * 24**2).width == 24


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"a": [0]}, "two groups or more"),
        ([[0], [1]], "expected a dict"),
        ({"a": [0], "b": []}, "'b': expected columns from 0 to 5"),
        ({"a": [0], "b": [6]}, "'b': expected columns from 0 to 5"),
        ({"a": [0], "b": "12"}, "'b': expected columns"),
        ({"a": [0, 1], "b": [1]}, "column 1 is in two groups"),
        ({"a": [0, 0], "b": [1]}, "column 0 is in two groups"),
    ],
)
def test_unusable_groups(groups, message):
    with pytest.raises(xl.errors.InputError, match=message):
        check_groups(groups, (6,), torch.zeros(1, 6))


def test_groups_are_of_vectors_only():
    assert check_groups(None, (2, 24), torch.zeros(1, 2, 24)) == ()
    for example in (torch.zeros(1, 2, 24), torch.zeros(1, 6).long()):
        with pytest.raises(xl.errors.InputError, match="they are for vectors"):
            check_groups({"a": [0], "b": [1]}, tuple(example.shape[1:]), example)
    assert check_groups({"a": [0], "b": (1, 2)}, (6,), torch.zeros(1, 6)) == (("a", (0,)), ("b", (1, 2)))
