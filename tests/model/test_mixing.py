"""What mixes, held constant on the way back: against detached tensors by hand, and unchanged where it is not held."""

import weakref
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision import models

import exitlens as xl
from exitlens.model.mixing import Mixing
from tests.conftest import TinyNet
from tests.model.kinds import make_network


def _normalise(x, mixes):
    """Return a layer norm's output by hand, and the layer norm; ``mixes`` is applied to its scale."""
    norm = nn.LayerNorm(4)
    nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(1))
    nn.init.normal_(norm.bias, generator=torch.Generator().manual_seed(2))
    centred = x - x.mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + norm.eps).rsqrt()
    return centred * mixes(scale) * norm.weight + norm.bias, norm


WAYS = {
    "fused": lambda q, v: F.scaled_dot_product_attention(q, q, v),
    "named": lambda q, v: F.scaled_dot_product_attention(value=v, key=q, query=q),
    "half named": lambda q, v: F.scaled_dot_product_attention(q, key=q, value=v),
    "function": lambda q, v: torch.softmax(q @ q.transpose(1, 2) / 2, -1) @ v,
    "method": lambda q, v: (q @ q.transpose(1, 2) / 2).softmax(-1) @ v,
    "module": lambda q, v: nn.Softmax(-1)(q @ q.transpose(1, 2) / 2) @ v,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("is_fixed", [False, True])
def test_gradients_are_those_of_detached_mixing(way, is_fixed):
    x = torch.randn(2, 5, 4, requires_grad=True)
    mixes = torch.Tensor.detach if is_fixed else lambda t: t
    by_hand, norm = _normalise(x, mixes)
    wanted = WAYS["function"](mixes(by_hand), by_hand)
    (expected,) = torch.autograd.grad(wanted.square().sum(), x, retain_graph=True)
    mixing = Mixing()
    with mixing:
        normalised = norm(x)
        found = WAYS[way](normalised, normalised)
    torch.testing.assert_close(found, wanted)
    with mixing.fixed() if is_fixed else nullcontext():
        (gradient,) = torch.autograd.grad(found.square().sum(), x, retain_graph=True)
    torch.testing.assert_close(gradient, expected)


def test_multihead_attention_holds_its_weights():
    layer, x = nn.MultiheadAttention(4, 2, batch_first=True), torch.randn(2, 5, 4, requires_grad=True)
    with Mixing(is_fixed=True):
        found = layer(x, x, x)[0]
    (gradient,) = torch.autograd.grad(found.square().sum(), x)
    wanted = layer(x.detach(), x.detach() + 0, x)[0]
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(gradient, torch.autograd.grad(wanted.square().sum(), x)[0])


def test_weights_are_trained_as_without_it_and_arguments_may_be_named():
    layer, x = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True), torch.randn(2, 5, 4, requires_grad=True)
    layer(x).square().sum().backward()
    expected = [p.grad.clone() for p in layer.parameters()]
    layer.zero_grad()
    with Mixing():
        out = layer(x)
    out.square().sum().backward()
    torch.testing.assert_close([p.grad for p in layer.parameters()], expected, atol=1e-5, rtol=1e-4)
    with Mixing():
        normalised = F.layer_norm(input=x, normalized_shape=(4,), eps=1e-3)
    torch.testing.assert_close(normalised, F.layer_norm(x, (4,), eps=1e-3))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "at", "side", "attends"),
    [
        (TinyNet, "a", 16, False),
        (lambda: "timm:resnest14d", "layer1", 64, False),  # a softmax over branches
        (lambda: models.SwinTransformer([4, 4], 24, [1, 1], [1, 2], [7, 7], num_classes=4), "features.1", 64, True),
        (lambda: "timm:levit_128s", "stages.0", 224, True),
        (lambda: pytest.importorskip("timm").create_model("vit_tiny_patch16_224", depth=3), "blocks.1", 224, True),
        (
            lambda: make_transformer(*(nn.TransformerEncoderLayer(8, 2, 8, batch_first=True) for _ in range(2))),
            "one",
            16,
            True,
        ),
    ],
)
def test_networks_know_whether_they_attend(make, at, side, attends):
    assert xl.attach(make(), [at], 4, torch.zeros(1, 3, side, side)).has_self_attention == attends


def attend_twice(net, x):  # (B,6,3) -> (B,2)
    x = net.embed(x)
    for norm in net.norms:
        y = norm(x)
        x = x + F.scaled_dot_product_attention(y, y, y)
    return net.out(x.mean(1))


def test_what_the_first_layer_norm_took_is_found_and_not_kept():
    norms = nn.ModuleList(nn.LayerNorm(4) for _ in range(2))
    mixing, body = Mixing(), make_network(attend_twice, embed=nn.Linear(3, 4), norms=norms, out=nn.Linear(4, 2))
    body.requires_grad_(requires_grad=False)
    with mixing:
        out = body(torch.randn(2, 6, 3, requires_grad=True))
    first = mixing.find_unmixed(torch.zeros(2, 6, 4))
    assert first.requires_grad
    other = torch.zeros(2, 6, 4)
    assert mixing.find_unmixed(other) is other  # asked again
    forgotten = weakref.ref(first)
    del out, first
    assert forgotten() is None
    mixing = Mixing()
    with mixing:
        body(torch.randn(2, 6, 3))
    assert mixing.find_unmixed(torch.zeros(2, 5, 4)).shape == (2, 5, 4)


def attend(x):
    return F.scaled_dot_product_attention(x, x, x)


def attend_without_gradients(net, x):
    with torch.no_grad():
        return x + attend(net.norm(x))


def attend_after_positions(net, x):
    x = x + net.norm(net.positions) + net.norm(net.more)
    return x + attend(net.norm(x))


BLOCKS = {
    "norm before": lambda n, x: x + attend(n.norm(x)),
    "norm after": lambda n, x: x + n.norm(attend(x)),
    "early residual": lambda n, x: x.reshape(x.shape[0], -1).view(x.shape) + attend(n.norm(x)),
    "without gradients": attend_without_gradients,
    "gated by a norm beside": lambda n, x: (
        n.norm(2 * x).detach().sigmoid().mean((1, 2), keepdim=True) * x + attend(n.norm(x))
    ),
    "frozen positions": attend_after_positions,
}


def make_block(name="norm before"):
    norm, positions = nn.LayerNorm(8), nn.Parameter(torch.randn(1, 16, 8), requires_grad=False)
    nn.init.uniform_(norm.weight, 0.5, 2.0)
    return make_network(BLOCKS[name], norm=norm, positions=positions, more=torch.randn(1, 16, 8))


def make_transformer(first, second):  # patches of 4 pixels and two blocks; -> (B,4)
    layers = {"patch": nn.Conv2d(3, 8, 4, 4), "one": first, "two": second, "fc": nn.Linear(8, 4)}
    return make_network(lambda n, x: n.fc(n.two(n.one(n.patch(x).flatten(2).transpose(1, 2))).mean(1)), **layers)


def attach_transformer(block):
    torch.manual_seed(0)
    net = xl.attach(make_transformer(make_block(block), make_block()), ["one"], 4, torch.randn(1, 3, 16, 16)).eval()
    for head in net.heads:
        nn.init.normal_(head.attend.weight)
    return net


@pytest.mark.parametrize(
    "block", ["norm before", *(pytest.param(name, marks=pytest.mark.slow) for name in list(BLOCKS)[1:])]
)
def test_relevance_changes_no_answer_and_no_tensor_of_any_transformer(block):
    x, found = torch.randn(5, 3, 16, 16), []
    for frozen in (False, True):
        net = attach_transformer(block)
        if frozen:
            net.stages.requires_grad_(requires_grad=False)
        before = {name: t.requires_grad for name, t in [*net.named_parameters(), *net.named_buffers()]}
        plain, (outs, _, _, relevance) = net(x), net.observe(x, relevance=True)
        for out, expected in zip(outs, plain, strict=True):
            torch.testing.assert_close(out.logits, expected.logits)
        assert not x.requires_grad
        assert {name: t.requires_grad for name, t in [*net.named_parameters(), *net.named_buffers()]} == before
        found.append(relevance)
    torch.testing.assert_close(*found)
    of_features = xl.attribute(net, x)
    if block in ("norm after", "without gradients", "gated by a norm beside"):  # only exit 0's features are known
        torch.testing.assert_close(found[0], of_features)
    else:
        assert not torch.allclose(found[0], of_features, rtol=0.1)
