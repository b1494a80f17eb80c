"""Backbones that do unusual things: cut exactly, or refused with our own error; found by attacking the library."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import exitlens as xl
from tests.texts import make_texts

X = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
AT = ["a", "b"]


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):  # new weights in every run: one in nine hid a small effect
            torch.manual_seed(0)
            self.a, self.b, self.c = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 12, 3, 2, 1), nn.Conv2d(12, 16, 3, 2, 1)
            self.fc = nn.Linear(16, 5)
            self.more()

    def more(self):
        pass

    def tail(self, x):
        return self.fc(F.relu(self.c(x)).mean((2, 3)))

    def forward(self, x):
        return self.tail(F.relu(self.b(F.relu(self.a(x)))))


def attach(network, at=AT, final="keep", example=X[:1], **more):
    return xl.attach(network.eval(), at, 5, example, final=final, **more)


def assert_exact(network, net, x=X):
    with torch.no_grad():
        assert torch.equal(net.eval()(x)[-1].logits, network.eval()(x))
        assert torch.equal(net(x[:1])[-1].logits, network(x[:1]))


class FrozenStem(Base):
    def forward(self, x):
        with torch.no_grad():
            x = F.relu(self.a(x))
        return self.tail(F.relu(self.b(x)))


def test_no_grad_in_the_forward_is_kept():
    network = FrozenStem()
    net = attach(network, ["b"])
    assert_exact(network, net)
    net.train()(X)[-1].logits.sum().backward()
    assert network.a.weight.grad is None
    assert network.b.weight.grad is not None
    with pytest.raises(xl.errors.AttachError, match=r"the gradient of 'a.bias' is not.*no_grad"):  # a cut inside the block
        attach(network, AT)


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.sign()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Binarised(Base):
    def forward(self, x):
        return self.tail(StraightThrough.apply(self.b(F.relu(self.a(x)))))


class CountsIntoTheAnswer(Base):
    def more(self):
        self.register_buffer("n", torch.zeros(()))

    def forward(self, x):
        k = self.n.add_(1.0)
        x = F.relu(self.a(x))
        return self.tail(F.relu(self.b(x) * (1 + (k > 1000).float())))


class ReplacesABuffer(Base):
    def more(self):
        self.register_buffer("n", torch.zeros(()))

    def forward(self, x):
        self.n = self.n + 1
        return super().forward(x)


class Gated(Base):
    def more(self):
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return super().forward(x + self.gate * (x - x.mean(0, keepdim=True)))


class BatchStatistics(Base):
    def more(self):
        self.norm = nn.BatchNorm2d(3, track_running_stats=False)
        nn.init.normal_(self.fc.weight, std=0.002)

    def forward(self, x):
        return super().forward(self.norm(x))


class AloneIsOther(Base):
    def forward(self, x):
        return super().forward(x * 2 if x.shape[0] > 1 else x)


class Squeezes(Base):
    def forward(self, x):
        return super().forward(x).squeeze()


class Lazy(Base):
    def forward(self, x):
        if not hasattr(self, "pos"):
            self.register_buffer("pos", torch.ones(1, 8, 1, 1))
        return self.tail(F.relu(self.b(F.relu(self.a(x)) * self.pos)))


class Graph(Base):
    def more(self):
        self.graph = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return super().forward(self.graph(x))


class Uncounted(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.w = nn.Parameter(torch.randn(5, 3, 1, 1))

    def forward(self, x):
        return (self.b(self.a(x))[:, None] * self.w).sum((2, 3, 4))


class Integers(Base):
    def more(self):
        self.number = Rounds()

    def forward(self, x):
        return self.tail(F.relu(self.b(self.number(F.relu(self.a(x))).float())))


class Rounds(nn.Module):
    def forward(self, x):
        return x.round().long()


@pytest.mark.parametrize(
    ("network", "at", "message"),
    [
        (Binarised(), AT, "the gradient of 'a.bias' is not"),
        (ReplacesABuffer(), AT, "buffer 'n' is not"),
        (Gated(), AT, "depend on who else is in the batch"),
        (BatchStatistics(), AT, "depend on who else is in the batch"),
        (AloneIsOther(), AT, "single sample|depend on who else|cannot be traced"),
        (Squeezes(), AT, r"returns a tensor \(5,\)"),
        (Lazy(), AT, "makes 'pos'.*run one batch"),
        (Graph(), AT, "'graph' has the name of something that torch.fx needs. Fix: rename it"),
        (Uncounted(), ["a"], "no multiply-accumulates"),
        (Integers(), ["number"], "its features are torch.int64, the network's parameters torch.float32; the nearest cut"),
    ],
)
def test_refused_by_our_own_error(network, at, message):
    with pytest.raises(xl.errors.AttachError, match=message):
        attach(network, at)


def test_a_counter_that_crosses_is_never_counted_twice():
    network = CountsIntoTheAnswer()
    with pytest.raises(xl.errors.AttachError, match="more than the batch axis would have to be dynamic"):
        attach(network)
    assert network.n == 0


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.e, self.first = nn.Embedding(50, 16), nn.LSTM(16, 18, batch_first=True)
        self.second, self.fc = nn.GRU(18, 20, batch_first=True), nn.Linear(20, 5)

    def forward(self, ids):
        x, _ = self.first(self.e(ids))
        return self.fc(self.second(x)[0][:, -1])


def test_recurrent_layers_are_features():
    network, ids = Recurrent().eval(), torch.randint(0, 50, (4, 12))
    net = attach(network, ["first"], example=ids)
    assert_exact(network, net, ids)
    headed = attach(network, ["e", "first"], "head", ids)
    assert any(p is network.second.weight_ih_l0 for p in headed.parameters())
    assert [head.classifier.in_features for head in headed.heads] == [16, 18, 20]
    assert 0.2 < headed.cost[1] < 0.7
    assert attach(network, 1, example=ids).info.at == ("first",)


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        layers = (nn.TransformerEncoderLayer(16, 2, 24, batch_first=True) for _ in range(3))
        self.e, self.layers, self.fc = nn.Embedding(50, 16), nn.ModuleList(layers), nn.Linear(16, 5)

    def forward(self, ids):
        x = self.e(ids)
        for layer in self.layers:
            x = layer(x)
        return self.fc(x.mean(1))


def test_fused_attention_is_counted():
    network, ids = Encoder(), torch.randint(0, 50, (4, 12))
    net = attach(network, 2, example=ids)
    assert net.info.at == ("layers.0", "layers.1")
    assert [round(c, 1) for c in net.cost.tolist()] == [0.3, 0.7, 1.0]
    assert net.head_share < 0.05
    assert torch.backends.mha.get_fastpath_enabled()


def test_the_layout_counts_where_exits_are_placed():
    ids = torch.randint(0, 50, (4, 16))  # as many tokens as channels
    assert attach(Encoder(), 2, example=ids).info.at == ("layers.0", "layers.1")

    class Convolves(Encoder):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv1d(16, 16, 3, padding=1)

        def forward(self, ids):
            x = self.conv(self.e(ids).transpose(1, 2)).transpose(1, 2)
            for layer in self.layers:
                x = layer(x)
            return self.fc(x.mean(1))

    with pytest.raises(xl.errors.AttachError, match="places for them"):
        attach(Convolves(), 2, example=ids)
    assert attach(Convolves(), 2, example=ids, layout="tokens").info.at[-1] == "layers.1"


def test_infinite_logits_are_equal_to_themselves():
    class Off(Base):
        def forward(self, x):
            return super().forward(x).masked_fill(torch.tensor([False, True, False, False, False]), -torch.inf)

    network = Off()
    assert_exact(network, attach(network))


class BoolMask(nn.Module):
    def __init__(self):
        super().__init__()
        self.e, self.l, self.fc = nn.Embedding(40, 8), nn.Linear(8, 12), nn.Linear(12, 5)

    def forward(self, input_ids, attention_mask):
        x = torch.relu(self.l(self.e(input_ids)))
        return self.fc(x.masked_fill(~attention_mask[..., None], 0.0).sum(1))


def test_masks_of_other_types_are_converted(tmp_path):
    texts = make_texts()
    given = texts | {"attention_mask": texts["attention_mask"].bool()}
    network = BoolMask()
    net = attach(network, ["e"], example=given)
    policy = xl.Policy.never(2)
    expected = xl.predict(net, given, policy).probabilities
    for dtype in (torch.int64, torch.int32, torch.bool):
        other = texts | {"attention_mask": texts["attention_mask"].to(dtype)}
        assert torch.equal(xl.predict(net, other, policy).probabilities, expected)
    back, _ = xl.load(xl.save(net, policy, tmp_path / "b"), backbone=BoolMask())
    assert torch.equal(xl.predict(back, given, policy).probabilities, expected)


class SharedBuffer(Base):
    """One buffer that every stage reads, batch norm, and control flow that needs torch.export."""

    def more(self):
        self.register_buffer("k", torch.tensor([1.5]))
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x):
        if x.mean(0).numel() > 1:
            x = self.norm(self.a(x)) * self.k
        return self.tail(F.relu(self.b(F.relu(x)) * self.k)) * self.k


def test_shared_buffers_stay_shared_when_the_network_is_converted(tmp_path):
    network = SharedBuffer()
    net = attach(network)
    assert len(list(net.stage(2).parameters())) == 2  # a stage holds what it uses, not the whole network
    net.double().float()
    assert_exact(network, net)
    assert network.double() is network
    network.float()
    net.train()(X)
    assert network.norm.num_batches_tracked == 1
    back, _ = xl.load(xl.save(net.eval(), None, tmp_path / "b"), backbone=SharedBuffer())
    assert torch.equal(back(X)[-1].logits, net(X)[-1].logits)


def test_a_dataclass_with_logits():
    from dataclasses import dataclass

    @dataclass
    class Answer:
        logits: torch.Tensor

    class Wrapped(Base):
        def forward(self, x):
            return Answer(super().forward(x))

    network = Wrapped()
    net = attach(network)
    assert torch.equal(net(X)[-1].logits, network(X).logits)


class Remembers(Base):
    """In evaluation mode, what it computes from a parameter is kept in a dict, until it is trained (as in timm's LeViT)."""

    def more(self):
        self.bias, self.cache = nn.Parameter(torch.randn(8, 1, 1)), {}

    def train(self, mode=True):
        self.cache = {}
        return super().train(mode)

    def forward(self, x):
        bias = 2 * self.bias if self.training else self.cache.setdefault("bias", 2 * self.bias)
        return self.tail(F.relu(self.b(F.relu(self.a(x) + bias))))


@pytest.mark.parametrize("at", [1, ["a", "b"]])
def test_a_cache_of_evaluation_mode_is_neither_used_nor_left_with_what_tracing_made(at):
    network = Remembers().eval()
    with torch.no_grad():
        network(X)
        kept = network.cache["bias"]
        net = attach(network, at)
        assert network.cache in ({}, {"bias": kept})  # verification trains it
        assert_exact(network, net)
        network.bias.mul_(3)
        network.train()  # it forgets, and the stages have nothing to forget
        assert_exact(network, net)
