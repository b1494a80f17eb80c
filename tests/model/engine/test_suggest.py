"""What a network runs with that nobody tuned."""

import copy
import threading

import pytest
import torch
from torch import nn

import exitlens as xl
from exitlens.model.engine.engine import Engine
from exitlens.model.engine.suggest import MICRO_BATCH
from exitlens.model.engine.tuning import Tuning
from tests.conftest import TinyNet, make_net
from tests.model.engine.networks import IMAGES, with_statistics
from tests.texts import make_text_net, make_texts

FOLDED = Tuning(MICRO_BATCH, channels_last=True, folded=True)
LAST = Tuning(MICRO_BATCH, channels_last=True)


class Standardised(nn.Conv2d):
    """A convolution with a forward pass of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = (self.weight - self.weight.mean((1, 2, 3), keepdim=True)) / self.weight.std((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight, self.bias)


class Own(TinyNet):
    """Its last stage's convolution is of an own class, with batch normalisation after it."""

    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Sequential(Standardised(8, 10, 3, padding=1), nn.BatchNorm2d(10), nn.ReLU())


class Bare(TinyNet):
    """No batch normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.a[1] = self.b[1] = nn.Identity()


class Viewing(TinyNet):
    """A view that fits one memory format only."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.b(self.a(x))
        x = x.view(x.shape[0], -1).unflatten(1, x.shape[1:])
        return self.fc(self.pool(self.c(x)).flatten(1))


class Grouped(TinyNet):
    """Channels shuffled by views that fit both formats."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        b, c, h, w = x.shape
        x = x.view(b, 2, c // 2, h, w).transpose(1, 2).contiguous().view(b, c, h, w)
        return self.fc(self.pool(self.c(self.b(x))).flatten(1))


def build(kind: type[nn.Module]) -> xl.ExitNet:
    torch.manual_seed(1)
    return with_statistics(xl.attach(kind(), ["a", "b"], 4, torch.zeros(1, 3, 16, 16)).eval())


def answers_as_plain(net: xl.ExitNet, inputs: xl.types.inputs.Inputs) -> None:
    plain = copy.deepcopy(net)
    plain.tuning = Tuning()
    trace, wanted = xl.collect(net, inputs), xl.collect(plain, inputs)
    torch.testing.assert_close(trace.logits, wanted.logits, atol=1e-4, rtol=1e-5)
    assert trace.network == wanted.network
    scores = wanted.logits[:, 0].softmax(1).amax(1).sort().values
    policy = xl.Policy(((scores[len(scores) // 2 - 1] + scores[len(scores) // 2]).item() / 2, 2.0), network=net.identity())
    one, other = (xl.predict(each, inputs, policy, attention=True) for each in (net, plain))
    assert one.exits.tolist() == other.exits.tolist()
    torch.testing.assert_close(one.probabilities, other.probabilities, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(one.attention, other.attention, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        (TinyNet, FOLDED),
        (Own, FOLDED),
        (Bare, LAST),
        (Viewing, Tuning(MICRO_BATCH)),
        (Grouped, FOLDED),
    ],
)
def test_convolutional_networks_answer_as_before_in_another_form(kind, wanted, tmp_path):
    net = build(kind)
    assert not net.is_tuned
    answers_as_plain(net, IMAGES)
    assert net.tuning == wanted
    assert not net.is_tuned
    with net.open_engine() as engine:
        assert engine.tuning == wanted
        assert engine.shared is not wanted.folded  # weights are copied only to fold
    xl.save(net, None, tmp_path / "b")
    back, _ = xl.load(tmp_path / "b", backbone=kind())
    assert not back.is_tuned
    assert back.tuning == wanted
    answers_as_plain(back, IMAGES)


def test_transformers_run_as_they_are():
    net = make_text_net().eval()
    answers_as_plain(net, make_texts(20))
    assert net.tuning == Tuning()


def test_doubles_run_as_they_are():
    net = make_net()
    assert net.tuning == FOLDED
    assert net.double().tuning == Tuning()
    answers_as_plain(net, IMAGES.double())
    assert net.float().tuning == FOLDED


def test_hooks_see_what_they_saw():
    net, seen = make_net(), []
    assert net.tuning == FOLDED
    convolution = net.stage(0).body.get_submodule("a.0")
    hook = convolution.register_forward_hook(lambda module, given, out: seen.append((module, len(given[0]))))
    assert net.tuning == Tuning()
    xl.predict(net, IMAGES, xl.Policy.never(3))
    assert seen == [(convolution, 70)]
    hook.remove()
    assert net.tuning == FOLDED


def test_a_form_in_which_it_says_something_else_is_not_taken(monkeypatch):
    def damage(*given):
        engine = prepare(*given)
        engine.heads[2].classifier.bias.data += 0.01
        return engine

    prepare = Engine.prepare
    monkeypatch.setattr(Engine, "prepare", damage)
    assert make_net().tuning == LAST


def test_what_cannot_be_copied_is_not():
    net = make_net()
    net.stage(0).body.get_submodule("a.2").lock = threading.Lock()
    assert net.tuning == LAST


def test_an_error_of_the_network_is_told_when_it_answers():
    net = make_net()
    net.stage(1).evaluation.forward = lambda *_: 1 / 0
    assert net.tuning == Tuning()
    with pytest.raises(ZeroDivisionError):
        xl.predict(net, IMAGES, xl.Policy.never(3))


def test_trying_out_leaves_modes_and_random_numbers_alone():
    net = make_net().train()
    state = torch.get_rng_state()
    with torch.autocast("cpu", torch.bfloat16):
        assert net.tuning == FOLDED
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in net.modules())
