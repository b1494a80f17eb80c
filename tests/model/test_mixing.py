"""What mixes, held constant on the way back: against detached tensors by hand, and unchanged where it is not held."""

import gc
import weakref
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import exitlens as xl
from exitlens.model.mixing import Mixing
from tests.conftest import TinyNet
from tests.texts import make_text_net


def _attend(x, mixes):
    """Self-attention in each way that PyTorch has, after a layer norm; ``mixes``: how it treats what mixes."""
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
    by_hand, norm = _attend(x, mixes)
    wanted = WAYS["function"](mixes(by_hand), by_hand)
    (expected,) = torch.autograd.grad(wanted.square().sum(), x, retain_graph=True)
    mixing = Mixing()
    with mixing:
        normalised = norm(x)
        found = WAYS[way](normalised, normalised)
    torch.testing.assert_close(found, wanted)
    if is_fixed:
        with mixing.fixed():
            (gradient,) = torch.autograd.grad(found.square().sum(), x, retain_graph=True)
    else:
        (gradient,) = torch.autograd.grad(found.square().sum(), x, retain_graph=True)
    torch.testing.assert_close(gradient, expected)


def test_layer_norm_may_have_its_arguments_named():
    x = torch.randn(2, 5, 4)
    with Mixing():
        found = F.layer_norm(input=x, normalized_shape=(4,), eps=1e-3)
    torch.testing.assert_close(found, F.layer_norm(x, (4,), eps=1e-3))


def test_multihead_attention_holds_its_weights():
    layer, x = nn.MultiheadAttention(4, 2, batch_first=True), torch.randn(2, 5, 4, requires_grad=True)
    with Mixing(is_fixed=True):
        found = layer(x, x, x)[0]
    (gradient,) = torch.autograd.grad(found.square().sum(), x)
    wanted = layer(x.detach(), x.detach() + 0, x)[0]
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(gradient, torch.autograd.grad(wanted.square().sum(), x)[0])


def test_weights_are_trained_as_without_it():
    layer, x = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True), torch.randn(2, 5, 4, requires_grad=True)
    layer(x).square().sum().backward()
    expected = [p.grad.clone() for p in layer.parameters()]
    layer.zero_grad()
    with Mixing():
        out = layer(x)
    out.square().sum().backward()
    for one, p in zip(expected, layer.parameters(), strict=True):
        torch.testing.assert_close(p.grad, one, atol=1e-5, rtol=1e-4)


def test_networks_know_whether_they_attend():
    assert make_text_net().has_attention
    assert not xl.attach(TinyNet(), ["a"], 4, torch.zeros(1, 3, 16, 16)).has_attention
    block = partial(nn.TransformerEncoderLayer, 8, 2, 8, batch_first=True)
    assert xl.attach(Transformer(block, block), ["one"], 4, torch.zeros(1, 3, 16, 16)).has_attention


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "at", "side", "attends"),
    [
        ("timm:resnest14d", "layer1", 64, False),  # a softmax over branches
        ("torchvision:swin_t", "features.1", 64, True),
        ("timm:levit_128s", "stages.0", 224, True),
        ("timm:vit_tiny_patch16_224", "blocks.3", 224, True),
    ],
)
def test_attention_is_told_from_other_softmaxes(source, at, side, attends):
    assert xl.attach(source, [at], 4, torch.zeros(1, 3, side, side)).has_attention == attends


class Blocks(nn.Module):
    """Embedding and two pre-norm blocks whose attention weights come from the tokens; -> (B,2)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 4)
        self.norms = nn.ModuleList(nn.LayerNorm(4) for _ in range(2))
        self.out = nn.Linear(4, 2)

    def forward(self, x):  # (B,6,3)
        x = self.embed(x)
        for norm in self.norms:
            y = norm(x)
            x = x + F.scaled_dot_product_attention(y, y, y)
        return self.out(x.mean(1))


def test_what_the_first_layer_norm_took_is_found_and_not_kept():
    mixing, body = Mixing(), Blocks()
    body.requires_grad_(requires_grad=False)
    with mixing:
        out = body(torch.randn(2, 6, 3, requires_grad=True))
    first = mixing.find_unmixed(torch.zeros(2, 6, 4))
    assert first.requires_grad
    other = torch.zeros(2, 6, 4)
    assert mixing.find_unmixed(other) is other  # asked again
    forgotten = weakref.ref(first)
    del out, first
    gc.collect()
    assert forgotten() is None
    mixing = Mixing()
    with mixing:
        body(torch.randn(2, 6, 3))
    assert mixing.find_unmixed(torch.zeros(2, 5, 4)).shape == (2, 5, 4)


class Block(nn.Module):
    """``x + attention(norm(x))``, without weights of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        nn.init.uniform_(self.norm.weight, 0.5, 2.0)

    def forward(self, x):
        return x + self.attend(self.norm(x))

    def attend(self, x):
        return F.scaled_dot_product_attention(x, x, x)


class NormAfter(Block):
    def forward(self, x):
        return x + self.norm(self.attend(x))


class EarlyResidual(Block):
    def forward(self, x):
        kept = x.reshape(x.shape[0], -1)  # before the norm took it
        return kept.view(x.shape) + self.attend(self.norm(x))


class WithoutGradients(Block):
    def forward(self, x):
        with torch.no_grad():
            return super().forward(x)


class Gated(Block):
    def forward(self, x):
        gate = self.norm(2 * x).detach().sigmoid().mean((1, 2), keepdim=True)  # a norm that is not on the way
        return gate * x + self.attend(x)


class FrozenPositions(Block):
    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(1, 16, 8), requires_grad=False)
        self.register_buffer("more", torch.randn(1, 16, 8))

    def forward(self, x):
        return super().forward(x + self.norm(self.positions) + self.norm(self.more))


class Transformer(nn.Module):
    """Patches of 4 pixels and two blocks; -> (B,4)."""

    def __init__(self, first: Callable[[], nn.Module], second: Callable[[], nn.Module] = Block) -> None:
        super().__init__()
        self.patch, self.one, self.two, self.fc = nn.Conv2d(3, 8, 4, 4), first(), second(), nn.Linear(8, 4)

    def forward(self, x):
        return self.fc(self.two(self.one(self.patch(x).flatten(2).transpose(1, 2))).mean(1))


def attach_transformer(block: type[Block]) -> xl.ExitNet:
    torch.manual_seed(0)
    net = xl.attach(Transformer(block), ["one"], 4, torch.randn(1, 3, 16, 16)).eval()
    for head in net.heads:
        nn.init.normal_(head.attend.weight)
    return net


@pytest.mark.parametrize("block", [Block, NormAfter, EarlyResidual, WithoutGradients, Gated, FrozenPositions])
def test_relevance_changes_no_answer_and_no_tensor_of_any_transformer(block):
    x, found = torch.randn(5, 3, 16, 16), []
    for frozen in (False, True):
        net = attach_transformer(block)
        if frozen:
            net.stages.requires_grad_(requires_grad=False)
        before = {name: t.requires_grad for name, t in [*net.named_parameters(), *net.named_buffers()]}
        plain, (outs, relevance) = net(x), net.with_relevance(x)
        for mine, theirs in zip(outs, plain, strict=True):
            torch.testing.assert_close(mine.logits, theirs.logits)
        assert not x.requires_grad
        assert {name: t.requires_grad for name, t in [*net.named_parameters(), *net.named_buffers()]} == before
        found.append(relevance)
    torch.testing.assert_close(*found)
    of_features = xl.attribute(net, x)
    if block in (NormAfter, WithoutGradients, Gated):  # nothing that is not mixed yet is known: exit 0's features
        torch.testing.assert_close(found[0], of_features)
    else:
        assert not torch.allclose(found[0], of_features, rtol=0.1)
