"""Backbones and cuts that cannot work: one error each, with the place and the nearest cut that works."""

from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import exitlens as xl
from tests.conftest import TinyNet
from tests.model.kinds import make_network


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
        self.fc, self.returns = nn.Linear(8, 4), returns

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
    """Convolve windows, four an image: there the batch axis is not the samples'."""
    samples = x.shape[0]
    x = net.inside(x.unflatten(2, (4, 8)).transpose(1, 2).flatten(0, 1))
    return x.unflatten(0, (samples, 4)).transpose(1, 2).flatten(2, 3) + net.again.weight.sum()


def carry_windows(net, x):
    """After a cut at ``again``, need the windows, four rows a sample, once more."""
    samples = x.shape[0]
    windows = net.inside(x.unflatten(2, (4, 8)).transpose(1, 2).flatten(0, 1))
    return net.again(x) + windows.unflatten(0, (samples, 4)).transpose(1, 2).flatten(2, 3)


def make_windows(forward):
    return Net(make_network(forward, inside=block(8, 8), again=nn.Conv2d(8, 8, 1)))


def make_unet(pooled):
    def forward(net, x):
        skip = net.down(x)
        low = net.bottom(F.max_pool2d(skip, 2))
        out = net.out(net.up(torch.cat([F.interpolate(low, scale_factor=2), skip], 1)))
        return out.mean((2, 3)) if pooled else out

    layers = {"down": block(3, 8), "bottom": block(8, 16), "up": block(24, 8), "out": nn.Conv2d(8, 4, 1)}
    return make_network(forward, **layers)


def attach(network, at=("stem",)):
    return xl.attach(network, list(at), 4, torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize(
    ("network", "at", "message"),
    [
        (Net(Chooses()), ["stem"], r"in module 'middle' \(Chooses\), line \d+ of test_refusals.*cuts.*'stem', 'middle'"),
        (Net(Chooses()), 2, "in module 'middle'"),
        (Chooses(), [], "in its own forward, line"),
        (LOOP, ["middle"], "'middle': it runs 3 times.*nearest cut that works is"),
        (LOOP, ["middle.conv"], "'middle.conv': it runs 3 times"),
        (LOOP, 99, r"99 early exits do not fit.*\('middle\S*, for example, runs 3 times: no name says after which\)"),
        (make_windows(convolve_windows), ["middle.inside"], r"shape \(8, 8, 8, 32\) for two samples.*the nearest cut"),
        (
            make_windows(carry_windows),
            ["middle.again"],
            "more than the batch axis would have to be dynamic; the nearest cut",
        ),
        (make_unet(False), ["down"], "encoder-decoder with skips such as U-Net.*smallest maps are after 'bottom'"),
        (Net(returns=lambda logits, x: (logits, 2 * logits)), ["stem"], "a tuple of a tensor.*of which 2 could be"),
        (nn.DataParallel(Net()), ["stem"], "wrapped by DataParallel"),
        (torch.compile(Net(), backend="eager"), ["stem"], "wrapped by OptimizedModule"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # of torch about lazy modules and nn.DataParallel
def test_refused_with_the_place_and_the_fix(network, at, message, capfd):
    with pytest.raises(xl.errors.AttachError, match=message):
        xl.attach(network, at, 4, torch.zeros(1, 3, 32, 32))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("network", "at"),
    [
        (LOOP, ["stem", "end.conv"]),
        (make_windows(convolve_windows), ["stem", "middle"]),
        (make_windows(carry_windows), ["stem", "middle"]),
        (make_unet(True), ["down", "bottom"]),
        (Net(returns=lambda logits, x: {"hidden": x, "logits": logits}), ["stem"]),
        (Net(returns=lambda logits, x: (x, logits)), ["stem"]),
    ],
)
def test_the_cuts_that_work_there(network, at):
    net, x = attach(network.eval(), at), torch.randn(3, 3, 32, 32)
    assert net(x)[0].logits.shape == (3, 4)


@pytest.mark.filterwarnings("ignore")
def test_quantised_and_scripted_modules():
    quantised = torch.ao.quantization.quantize_dynamic(Net(), {nn.Linear})
    with pytest.raises(xl.errors.AttachError, match=r"'fc' is a quantised Linear.*float network"):
        attach(quantised)
    with pytest.raises(xl.errors.AttachError, match="TorchScript"):
        attach(torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten())))


def count_calls(net, x):
    net.calls += 1
    return TinyNet.forward(net, x) * net.calls


@pytest.mark.slow
def test_a_state_that_no_buffer_holds_is_found():
    with pytest.raises(xl.errors.AttachError, match="a second call: its forward keeps a state"):
        xl.attach(make_network(count_calls, TinyNet, calls=0), ["a"], 4, torch.zeros(1, 3, 16, 16))


@pytest.mark.slow
def test_a_new_classifier_of_zeros_does_not_hide_a_mismatch():
    network = make_network(lambda n, x: TinyNet.forward(n, x - x.mean(0, keepdim=True)), TinyNet)
    nn.init.zeros_(network.fc.weight), nn.init.zeros_(network.fc.bias)
    with pytest.raises(xl.errors.AttachError, match="depend on who else is in the batch"):
        xl.attach(network, ["a"], 4, torch.zeros(1, 3, 16, 16))
    assert (network.fc.weight == 0).all()
