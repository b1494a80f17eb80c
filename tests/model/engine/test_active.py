"""The engine that answers now: the default of an untuned network, changed weights, copies, evaluation mode, failures."""

import copy
import pickle
import threading

import pytest
import torch
from torch import nn

import exitlens as xl
from exitlens.model.engine.engine import Engine
from exitlens.model.engine.preparation import DEFAULT_MICRO_BATCH
from exitlens.model.engine.tuning import Tuning
from tests.conftest import TinyNet, make_net, spread_policy
from tests.model.engine.networks import IMAGES, with_statistics
from tests.texts import make_text_net, make_texts

POLICY, NEVER = spread_policy(make_net(), IMAGES), xl.Policy.never(3)
FOLDED = Tuning(DEFAULT_MICRO_BATCH, channels_last=True, folded=True)
LAST = Tuning(DEFAULT_MICRO_BATCH, channels_last=True)


class Standardised(nn.Conv2d):
    """A convolution with a forward pass of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = (self.weight - self.weight.mean((1, 2, 3), keepdim=True)) / self.weight.std((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight, self.bias)


class Own(TinyNet):
    """Its last stage has a convolution of its own class before a batch normalisation."""

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
    pred, expected = (xl.predict(each, inputs, policy, attention=True) for each in (net, plain))
    assert pred.exits.tolist() == expected.exits.tolist()
    torch.testing.assert_close(pred.probabilities, expected.probabilities, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(pred.attention, expected.attention, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [(TinyNet, FOLDED), (Own, FOLDED), (Bare, LAST), (Viewing, Tuning(DEFAULT_MICRO_BATCH, folded=True))],
)
def test_untuned_convolutional_networks_answer_as_before_in_another_form(kind, wanted, tmp_path):
    net = build(kind)
    answers_as_plain(net, IMAGES)
    assert net.tuning == wanted
    assert not net.is_tuned
    with net.open_engine() as engine:
        assert engine is net.engine.find()
        assert engine.tuning == wanted
        assert engine.shared is not wanted.folded  # weights are copied only to fold
    xl.save(net, None, tmp_path / "b")
    back, _ = xl.load(tmp_path / "b", backbone=kind())
    assert not back.is_tuned
    assert back.tuning == wanted
    answers_as_plain(back, IMAGES)


def test_the_default_is_chosen_without_running_the_network(monkeypatch):
    net = make_net()
    for stage in net.stages:
        monkeypatch.setattr(stage.evaluation, "forward", lambda *_: pytest.fail("a stage ran"))
    assert net.identity()
    assert net.tuning == FOLDED


@pytest.mark.parametrize("final", ["head", "keep"])
def test_views_of_a_kept_classifier_count_too(final):
    class Flat(TinyNet):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.pool(self.c(self.b(self.a(x))))
            return self.fc(x.view(x.shape[0], -1))

    net = xl.attach(Flat(), ["a", "b"], 4, torch.zeros(1, 3, 16, 16), final=final).eval()
    assert net.tuning.channels_last is (final == "head")
    answers_as_plain(net, IMAGES)


@pytest.mark.slow
def test_transformers_run_unchanged():
    net = make_text_net().eval()
    answers_as_plain(net, make_texts(20))
    assert net.tuning == Tuning()


def test_doubles_run_unchanged():
    net = make_net()
    assert net.tuning == FOLDED
    assert net.double().tuning == Tuning()
    answers_as_plain(net, IMAGES.double())
    assert net.float().tuning == FOLDED


def test_hooks_see_what_they_would_see_without_an_engine():
    net, seen = make_net(), []
    assert net.tuning == FOLDED
    convolution = net.stage(0).body.get_submodule("a.0")
    hook = convolution.register_forward_hook(lambda module, given, out: seen.append((module, len(given[0]))))
    assert net.tuning == Tuning()
    xl.predict(net, IMAGES, NEVER)
    assert seen == [(convolution, 70)]
    hook.remove()
    assert net.tuning == FOLDED


def test_a_network_that_cannot_be_copied_is_not_folded():
    net = make_net()
    net.stage(0).body.get_submodule("a.2").lock = threading.Lock()
    assert net.tuning == LAST
    assert len(xl.predict(net, IMAGES, NEVER)) == 70


def load(net, source):
    source.load_state_dict(
        {name: 1.1 * value for name, value in source.state_dict().items() if value.is_floating_point()}, False
    )


def train(net, source):
    xl.EGTLoss()(net.train()(IMAGES[:4]), torch.tensor([0, 1, 2, 3])).total.backward()
    torch.optim.AdamW(net.parameters(), lr=0.1, fused=True).step()  # counts no version


def replace(net, source):
    source.b[0].weight = torch.nn.Parameter(1.1 * source.b[0].weight.detach())


CHANGES = {
    "loaded": lambda net, source: load(net, net),
    "loaded into the source": load,
    "trained": train,
    "a parameter set by hand": replace,
    "through data": lambda net, source: source.b[0].weight.data.mul_(1.1),
    "another head": lambda net, source: net.heads.__setitem__(2, copy.deepcopy(make_net("head").head(2)).requires_grad_()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_untuned_network_answers_with_its_present_weights(change):
    torch.manual_seed(3)
    source = TinyNet()
    net = xl.attach(source, ["a", "b"], 4, torch.zeros(1, 3, 16, 16)).eval()
    before = xl.predict(net, IMAGES[:8], NEVER).probabilities
    assert net.tuning.folded
    CHANGES[change](net, source)
    after = xl.predict(net, IMAGES[:8], NEVER).probabilities
    assert not torch.allclose(before, after)
    with torch.no_grad():
        torch.testing.assert_close(after, net.eval()(IMAGES[:8])[-1].logits.softmax(1), atol=1e-5, rtol=1e-4)


def test_training_goes_on_beside_a_tuned_network():
    net = make_net()
    net.tuning = Tuning(channels_last=True, folded=True)
    xl.predict(net, IMAGES[:4], POLICY)
    net.train()
    loss = xl.EGTLoss()(net(IMAGES[:4]), torch.tensor([0, 1, 2, 3])).total
    loss.backward()
    assert net.training
    assert all(p.grad is not None for name, p in net.named_parameters() if "attend" not in name)


def test_an_engine_that_fails_to_be_made_is_not_taken_for_the_old_one(monkeypatch):
    net = make_net()
    net.tuning = Tuning(folded=True)
    xl.predict(net, IMAGES[:4], NEVER)
    with torch.no_grad():
        net.head(2).classifier.bias.copy_(torch.tensor([1e4, 0, 0, 0]))
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "prepare", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            xl.predict(net, IMAGES[:4], NEVER)
    assert xl.predict(net, IMAGES[:4], NEVER).labels.tolist() == [0] * 4


def test_graphs_of_another_precision_are_refused(monkeypatch):
    net = make_net()
    net.tuning = Tuning(precision="bfloat16")
    monkeypatch.setattr(Tuning, "convert", lambda self, activations: activations)  # float32 meets bfloat16 weights
    with pytest.raises(xl.errors.EngineError, match="does not run in bfloat16"):
        xl.predict(net, IMAGES[:2], POLICY)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_a_copy_has_the_tuning_and_an_engine_of_its_own(duplicate):
    assert not duplicate(make_net()).is_tuned
    net = make_net()
    net.tuning = Tuning(folded=True)
    engine, twin = net.engine.find(), duplicate(net)
    assert twin.is_tuned
    assert twin.tuning == net.tuning
    assert twin.fingerprint() == net.fingerprint()
    with torch.no_grad():
        twin.head(2).classifier.bias.add_(1)
    assert twin.cached_fingerprint() != net.cached_fingerprint()
    assert twin.engine.find() is not engine
    assert net.engine.find() is engine
    assert len(xl.predict(twin, IMAGES[:4], POLICY)) == 4


@pytest.mark.parametrize("tuning", [None, Tuning(channels_last=True)])
def test_an_engine_is_made_once_and_again_after_a_change(tuning):
    net = make_net()
    if tuning is not None:
        net.tuning = tuning
    engines = []
    for change in (lambda: None, lambda: None, lambda: net.head(0).classifier.bias.data.add_(0), net.float):
        change()
        engines.append(net.engine.find())
    assert engines[0] is engines[1] is engines[2]
    assert engines[3] is not engines[2]  # moved tensors may be others
    net.tuning = Tuning()
    assert type(net.engine.find()) is Engine
    assert net.engine.find().shared


def test_another_tuning_meanwhile_leaves_modes_as_they_were():
    net = make_net().train()
    net.tuning = Tuning()
    with net.open_engine():
        net.tuning = Tuning(micro_batch=3)
        with net.open_engine():
            assert not net.stage(0).training
        assert not net.stage(0).training
    assert all(module.training for module in net.modules())


def test_evaluation_mode_lasts_until_the_last_thread_is_done():
    net = make_net().train()
    net.tuning = Tuning()
    inside, leave = threading.Event(), threading.Event()

    def answer() -> None:
        with net.open_engine():
            inside.set()
            leave.wait(20)

    thread = threading.Thread(target=answer)
    with net.open_engine():
        thread.start()
        assert inside.wait(20)
    assert not net.stage(0).training
    leave.set()
    thread.join()
    assert all(module.training for module in net.modules())


def test_int8_files_are_for_the_weights_that_they_were_made_of():
    net = make_net()
    net.tuning = Tuning(backend="onnx", precision="int8")
    with pytest.raises(xl.errors.EngineError, match=r"int8 files hold other weights\. Fix: call exitlens\.export_int8"):
        xl.predict(net, IMAGES[:2], NEVER)
    with pytest.raises(xl.errors.EngineError, match="int8 files, which PyTorch cannot compile"):
        net.compile()
