"""Backbones that do unusual things: cut exactly, or refused with the place and the nearest cut that works."""

from collections import OrderedDict
from dataclasses import make_dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import exitlens as xl
from tests.model.kinds import make_network

X = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
AT = ["a", "b"]


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):  # the same weights in every run: some would hide a small effect
            torch.manual_seed(0)
            self.a, self.b, self.c = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 12, 3, 2, 1), nn.Conv2d(12, 16, 3, 2, 1)
            self.fc = nn.Linear(16, 5)

    def tail(self, x):
        return self.fc(F.relu(self.c(x)).mean((2, 3)))

    def forward(self, x):
        return self.tail(F.relu(self.b(F.relu(self.a(x)))))


def make(forward, **members):
    return make_network(forward, Base, **members)


def attach(network, at=AT, final="keep", example=X[:1], **more):
    return xl.attach(network.eval(), at, 5, example, final=final, **more)


def assert_exact(network, net, x=X):
    with torch.no_grad():
        assert torch.equal(net.eval()(x)[-1].logits, network.eval()(x))
        assert torch.equal(net(x[:1])[-1].logits, network(x[:1]))


def freeze_the_stem(net, x):
    with torch.no_grad():
        x = F.relu(net.a(x))
    return net.tail(F.relu(net.b(x)))


@pytest.mark.slow
def test_no_grad_in_the_forward_is_kept():
    network = make(freeze_the_stem)
    net = attach(network, ["b"])
    assert_exact(network, net)
    net.train()(X)[-1].logits.sum().backward()
    assert network.a.weight.grad is None
    assert network.b.weight.grad is not None


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.sign()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class BatchStatistics(Base):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3, track_running_stats=False)
        self.fc.weight.data *= 0.014  # the logits are nearly constant

    def forward(self, x):
        return super().forward(self.norm(x))


def make_a_buffer(net, x):
    if not hasattr(net, "pos"):
        net.register_buffer("pos", torch.ones(1, 8, 1, 1))
    return net.tail(F.relu(net.b(F.relu(net.a(x)) * net.pos)))


def replace_a_buffer(net, x):
    net.n = net.n + 1
    return Base.forward(net, x)


def count_into_the_answer(net, x):
    k = net.n.add_(1.0)
    return net.tail(F.relu(net.b(F.relu(net.a(x))) * (1 + (k > 1000).float())))


def name_like_torch_fx(net, x):
    return Base.forward(net, net.graph(x))


def mix_samples(net, x):
    return Base.forward(net, x + net.gate * (x - x.mean(0, keepdim=True)))


def go_through_integers(net, x):
    return net.tail(F.relu(net.b(net.number(F.relu(net.a(x))).float())))


NUMBER, GATE = make_network(lambda n, x: x.long()), nn.Parameter(torch.zeros(1))
NORMS = {"a": nn.BatchNorm2d(3), "b": nn.BatchNorm2d(3), "w": nn.Parameter(torch.randn(5, 3, 1, 1))}
UNCOUNTED = make_network(lambda n, x: (n.b(n.a(x))[:, None] * n.w).sum((2, 3, 4)), **NORMS)


def block(inputs, outputs):
    layers = {"conv": nn.Conv2d(inputs, outputs, 3, padding=1), "norm": nn.BatchNorm2d(outputs), "act": nn.ReLU()}
    return nn.Sequential(OrderedDict(layers))


class Chooses(nn.Module):
    """Runs something else when the batch is bright."""

    def __init__(self):
        super().__init__()
        self.inner = block(8, 8)

    def forward(self, x):
        return self.inner(x) if x.mean() > 0 else x


class Net(nn.Module):
    """stem, a middle of one's choice, end, classifier; ``returns`` makes the output of the logits and the features."""

    def __init__(self, middle=None, returns=None):
        super().__init__()
        self.stem, self.middle, self.end = block(3, 8), middle or block(8, 8), block(8, 8)
        self.fc, self.returns = nn.Linear(8, 5), returns

    def forward(self, x):
        x = self.end(self.middle(self.stem(x)))
        logits = self.fc(x.mean((2, 3)))
        return self.returns(logits, x) if self.returns else logits


def loop(net, x):
    x = net.stem(x)
    for _ in range(3):
        x = net.middle(x)
    return net.fc(net.end(x).mean((2, 3)))


LOOP = make_network(loop, Net)


def convolve_windows(net, x):
    """Convolve windows, two an image: there the batch axis is not the samples'."""
    samples = x.shape[0]
    x = net.inside(x.unflatten(2, (2, 8)).transpose(1, 2).flatten(0, 1))
    return x.unflatten(0, (samples, 2)).transpose(1, 2).flatten(2, 3) + net.again.weight.sum()


def carry_windows(net, x):
    """After a cut at ``again``, need the windows, two rows a sample, once more."""
    samples = x.shape[0]
    windows = net.inside(x.unflatten(2, (2, 8)).transpose(1, 2).flatten(0, 1))
    return net.again(x) + windows.unflatten(0, (samples, 2)).transpose(1, 2).flatten(2, 3)


def make_windows(forward):
    return Net(make_network(forward, inside=block(8, 8), again=nn.Conv2d(8, 8, 1)))


def make_unet(pooled):
    def forward(net, x):
        skip = net.down(x)
        low = net.bottom(F.max_pool2d(skip, 2))
        out = net.out(net.up(torch.cat([F.interpolate(low, scale_factor=2), skip], 1)))
        return out.mean((2, 3)) if pooled else out

    layers = {"down": block(3, 8), "bottom": block(8, 16), "up": block(24, 8), "out": nn.Conv2d(8, 5, 1)}
    return make_network(forward, **layers)


def count_calls(net, x):
    net.calls += 1
    return Base.forward(net, x) * net.calls


ZEROS = nn.Linear(16, 5)
nn.init.zeros_(ZEROS.weight), nn.init.zeros_(ZEROS.bias)
REFUSED = [
    (Net(Chooses()), ["stem"], r"in module 'middle' \(Chooses\), line \d+ of test_hostile.*cuts.*'stem', 'middle'"),
    (Net(Chooses()), 2, "in module 'middle'"),
    (Chooses(), [], "in its own forward, line"),
    (LOOP, ["middle"], "'middle': it runs 3 times.*nearest cut that works is"),
    (LOOP, ["middle.conv"], "'middle.conv': it runs 3 times"),
    (LOOP, 99, r"99 early exits do not fit.*\('middle\S*, for example, runs 3 times: no name says after which\)"),
    (make_windows(convolve_windows), ["middle.inside"], r"shape \(4, 8, 8, 16\) for two samples.*the nearest cut"),
    (make_windows(carry_windows), ["middle.again"], "more than the batch axis would have to be dynamic; the nearest cut"),
    (Net(returns=lambda logits, x: (logits, 2 * logits)), ["stem"], "a tuple of a tensor.*of which 2 could be"),
    (nn.DataParallel(Net()), ["stem"], "wrapped by DataParallel"),
    (torch.compile(Net(), backend="eager"), ["stem"], "wrapped by OptimizedModule"),
]
REFUSED_WHEN_VERIFIED = [
    (make(count_into_the_answer, n=torch.zeros(())), AT, "more than the batch axis would have to be dynamic"),
    (make(lambda n, x: n.tail(StraightThrough.apply(n.b(F.relu(n.a(x)))))), AT, "the gradient of 'a.bias' is not"),
    (make(replace_a_buffer, n=torch.zeros(())), AT, "buffer 'n' is not"),
    (make(mix_samples, gate=GATE), AT, "depend on who else is in the batch"),
    (BatchStatistics(), AT, "depend on who else is in the batch"),
    (make(lambda n, x: Base.forward(n, x * 2 if len(x) > 1 else x)), AT, "single sample|on who else|cannot be traced"),
    (make(lambda n, x: Base.forward(n, x).squeeze()), AT, r"returns a tensor \(5,\)"),
    (make(make_a_buffer), AT, "makes 'pos'.*run one batch"),
    (make(name_like_torch_fx, graph=nn.Conv2d(3, 3, 1)), AT, "'graph' has the name of something that torch.fx needs. Fix"),
    (UNCOUNTED, ["a"], "no multiply-accumulates"),
    (make(go_through_integers, number=NUMBER), ["number"], "are torch.int64, .* torch.float32; the nearest cut"),
    (make(freeze_the_stem), AT, r"the gradient of 'a.bias' is not.*no_grad"),  # a cut inside the block
    (make(count_calls, calls=0), ["a"], "a second call: its forward keeps a state"),
    (make(lambda n, x: Base.forward(n, x - x.mean(0, keepdim=True)), fc=ZEROS), AT, "depend on who else is in the batch"),
]


@pytest.mark.parametrize(
    ("network", "at", "message"),
    [*REFUSED, *(pytest.param(*case, marks=pytest.mark.slow) for case in REFUSED_WHEN_VERIFIED)],
)
@pytest.mark.filterwarnings("ignore")  # of torch about lazy modules and nn.DataParallel
def test_refused_with_the_place_and_the_fix(network, at, message, capfd):
    with pytest.raises(xl.errors.AttachError, match=message):
        attach(network, at)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("network", "at"),
    [
        (LOOP, ["stem", "end.conv"]),
        (make_windows(convolve_windows), ["stem", "middle"]),
        (make_windows(carry_windows), ["stem", "middle"]),
        (make_unet(True), ["down", "bottom"]),
        (make_unet(False), ["down", "bottom"]),
        (Net(returns=lambda logits, x: {"hidden": x, "logits": logits}), ["stem"]),
        (Net(returns=lambda logits, x: (x, logits)), ["stem"]),
    ],
)
@pytest.mark.slow
def test_the_cuts_that_work_there(network, at):
    assert attach(network, at, "head")(X)[0].logits.shape[:2] == (6, 5)


@pytest.mark.filterwarnings("ignore")
def test_quantised_and_scripted_modules():
    quantised = torch.ao.quantization.quantize_dynamic(Net(), {nn.Linear})
    with pytest.raises(xl.errors.AttachError, match=r"'fc' is a quantised Linear.*float network"):
        attach(quantised)
    with pytest.raises(xl.errors.AttachError, match="TorchScript"):
        attach(torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten())))


def make_encoder(embed=lambda net, ids: net.e(ids), **members):
    layers = nn.Sequential(*(nn.TransformerEncoderLayer(16, 2, 24, batch_first=True) for _ in range(3)))
    members |= {"e": nn.Embedding(50, 16), "layers": layers, "fc": nn.Linear(16, 5)}
    return make_network(lambda net, ids: net.fc(net.layers(embed(net, ids)).mean(1)), **members)


@pytest.mark.slow
def test_the_layout_counts_where_exits_are_placed():
    ids = torch.randint(0, 50, (4, 16))  # as many tokens as channels
    assert attach(make_encoder(), 2, example=ids).info.at == ("layers.0", "layers.1")

    def convolve(net, ids):
        return net.conv(net.e(ids).transpose(1, 2)).transpose(1, 2)

    network = make_encoder(convolve, conv=nn.Conv1d(16, 16, 3, padding=1))
    with pytest.raises(xl.errors.AttachError, match="places for them"):
        attach(network, 2, example=ids)
    assert attach(network, 2, example=ids, layout="tokens").info.at[-1] == "layers.1"


@pytest.mark.slow
def test_infinite_logits_are_equal_to_themselves_and_may_come_in_a_dataclass():
    off, answer = torch.tensor([False, True, False, False, False]), make_dataclass("Answer", ["logits"])
    network = make(lambda n, x: answer(Base.forward(n, x).masked_fill(n.off, -torch.inf)), off=off)
    assert torch.equal(attach(network)(X)[-1].logits, network(X).logits)


class SharedBuffer(Base):
    """One buffer that every stage reads, batch norm, and control flow that needs torch.export."""

    def __init__(self):
        super().__init__()
        self.register_buffer("k", torch.tensor([1.5]))
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x):
        if x.mean(0).numel() > 1:
            x = self.norm(self.a(x)) * self.k
        return self.tail(F.relu(self.b(F.relu(x)) * self.k)) * self.k


@pytest.mark.slow
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


class Remembers(Base):
    """In evaluation mode, what it computes from a parameter is kept in a dict, until it is trained (as in timm's LeViT)."""

    def __init__(self):
        super().__init__()
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
