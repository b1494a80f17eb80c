"""The engine of a network: default of an untuned one, changed weights, copies, evaluation mode and failures."""

import copy
import pickle
import threading

import pytest
import torch
from torch import nn

import exitlens as xl
from exitlens.model.engine.engine import Engine
from exitlens.model.engine.manager import WeightsRecord
from exitlens.model.engine.onnx_files import build_engine
from exitlens.model.engine.tuning import DEFAULT_MICRO_BATCH, Tuning
from tests.conftest import TinyNet, make_net, spread_policy
from tests.model.engine.networks import IMAGES, check_answers, with_statistics
from tests.model.kinds import make_network
from tests.texts import make_text_net, make_texts

POLICY, NEVER = spread_policy(make_net(), IMAGES), xl.Policy.never(3)
FOLDED = Tuning(DEFAULT_MICRO_BATCH, channels_last=True, folded=True)
LAST = Tuning(DEFAULT_MICRO_BATCH, channels_last=True)


class Standardised(nn.Conv2d):
    """A convolution with a forward pass of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = (self.weight - self.weight.mean((1, 2, 3), keepdim=True)) / self.weight.std((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight, self.bias)


def make_own() -> TinyNet:
    """Return a network whose last stage has a convolution of its own class before a batch normalisation."""
    net = TinyNet()
    net.c = nn.Sequential(Standardised(8, 10, 3, padding=1), nn.BatchNorm2d(10), nn.ReLU())
    return net


def make_bare() -> TinyNet:
    """Return a network without batch normalisation."""
    net = TinyNet()
    net.a[1] = net.b[1] = nn.Identity()
    return net


def view(net, x):
    """A view that fits one memory format only."""
    x = net.b(net.a(x))
    x = x.view(x.shape[0], -1).unflatten(1, x.shape[1:])
    return net.fc(net.pool(net.c(x)).flatten(1))


@pytest.mark.parametrize(
    ("make", "wanted"),
    [
        (TinyNet, FOLDED),
        (make_own, FOLDED),
        (make_bare, LAST),
        (lambda: make_network(view, TinyNet), Tuning(DEFAULT_MICRO_BATCH, folded=True)),
    ],
)
@pytest.mark.slow
def test_untuned_convolutional_networks_answer_as_before_in_another_form(make, wanted):
    torch.manual_seed(1)
    net = with_statistics(xl.attach(make(), ["a", "b"], 4, torch.zeros(1, 3, 16, 16)).eval())
    check_answers(net, IMAGES)
    assert net.tuning == wanted
    assert not net.is_tuned
    with net.open_engine() as engine:
        assert engine is net.engine.select()
        assert engine.tuning == wanted
        assert engine.in_place is not wanted.folded  # weights are copied only to fold


def test_the_default_is_chosen_without_running_the_network(monkeypatch):
    net = make_net()
    for stage in net.stages:
        monkeypatch.setattr(stage.evaluation, "forward", lambda *_: pytest.fail("a stage ran"))
    assert net.identity()
    assert net.tuning == FOLDED


@pytest.mark.parametrize("final", ["head", "keep"])
def test_views_of_a_kept_classifier_count_too(final):
    flat = make_network(lambda net, x: net.fc(net.pool(net.c(net.b(net.a(x)))).view(x.shape[0], -1)), TinyNet)
    net = xl.attach(flat, ["a", "b"], 4, torch.zeros(1, 3, 16, 16), final=final).eval()
    assert net.tuning.channels_last is (final == "head")
    check_answers(net, IMAGES)


@pytest.mark.slow
def test_transformers_run_unchanged():
    net = make_text_net().eval()
    check_answers(net, make_texts(20))
    assert net.tuning == Tuning()


def test_doubles_run_unchanged():
    net = make_net()
    assert net.tuning == FOLDED
    assert net.double().tuning == Tuning()
    check_answers(net, IMAGES.double())
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


def load(module):
    module.load_state_dict({name: 1.1 * value for name, value in module.state_dict().items()}, strict=False)


def train(net, **options):
    xl.EGTLoss()(net.train()(IMAGES[:4]), torch.tensor([0, 1, 2, 3])).total.backward()
    torch.optim.AdamW(net.parameters(), lr=0.1, **options).step()


CHANGES = {  # of a network, by what it was made of or a convolution and a normalisation of its first stage
    "loaded": lambda net, *_: load(net),
    "loaded into the source": lambda net, source, *_: load(source),
    "trained": lambda net, *_: train(net),
    "trained by a fused optimizer": lambda net, *_: train(net, fused=True),  # counts no version
    "in place": lambda net, source, conv, norm: norm.running_mean.add_(1),
    "through data": lambda net, source, conv, norm: conv.weight.data.mul_(2),
    "other data": lambda net, source, conv, norm: setattr(conv.weight, "data", conv.weight.data + 1),
    "another parameter": lambda net, source, conv, norm: setattr(conv, "bias", nn.Parameter(torch.ones(6))),
    "no parameter any more": lambda net, source, conv, norm: setattr(conv, "bias", None),
    "another module": lambda net, *_: net.heads.__setitem__(2, copy.deepcopy(make_net("head").head(2)).requires_grad_()),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.slow
def test_an_untuned_network_answers_with_its_present_weights(change):
    torch.manual_seed(3)
    source = TinyNet()
    net = xl.attach(source, ["a", "b"], 4, torch.zeros(1, 3, 16, 16)).eval()
    before = xl.predict(net, IMAGES[:8], NEVER).probabilities
    assert net.tuning.folded
    first = net.stage(0).body.get_submodule("a")
    CHANGES[change](net, source, first.get_submodule("0"), first.get_submodule("1"))
    after = xl.predict(net, IMAGES[:8], NEVER).probabilities
    assert not torch.allclose(before, after)
    with torch.no_grad():
        torch.testing.assert_close(after, net.eval()(IMAGES[:8])[-1].logits.softmax(1), atol=1e-5, rtol=1e-4)


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
    engine, twin = net.engine.select(), duplicate(net)
    assert twin.is_tuned
    assert twin.tuning == net.tuning
    assert twin.fingerprint() == net.fingerprint()
    with torch.no_grad():
        twin.head(2).classifier.bias.add_(1)
    assert twin.cached_fingerprint() != net.cached_fingerprint()
    assert twin.engine.select() is not engine
    assert net.engine.select() is engine
    assert len(xl.predict(twin, IMAGES[:4], POLICY)) == 4


@pytest.mark.parametrize("tuning", [None, Tuning(channels_last=True)])
def test_an_engine_is_made_once_and_again_after_a_change(tuning):
    net = make_net()
    if tuning is not None:
        net.tuning = tuning
    engine = net.engine.select()
    net.head(0).classifier.bias.data.add_(0)
    assert net.engine.select() is engine
    net.float()
    assert net.engine.select() is not engine  # moved tensors may be others
    net.tuning = Tuning()
    assert type(net.engine.select()) is Engine
    assert net.engine.select().in_place


def test_evaluation_mode_lasts_until_the_last_thread_is_done():
    net = make_net().train()
    net.tuning = Tuning()
    with net.open_engine():
        net.tuning = Tuning(micro_batch=3)
        with net.open_engine():
            assert not net.stage(0).training
        assert not net.stage(0).training
    assert all(module.training for module in net.modules())
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


def record(part: nn.Module) -> WeightsRecord:
    return WeightsRecord(nn.ModuleList([part]), nn.ModuleList())


def test_without_a_change_it_stays_the_same():
    part = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU())
    weights = record(part)
    part[1].running_var.fill_(float("nan"))  # not equal to itself
    before = weights.current()
    part(torch.zeros(2, 2, 5, 5)).sum()
    assert weights.current() is not before  # statistics of a batch
    before = weights.current()
    part.eval()(torch.zeros(2, 2, 5, 5))
    assert weights.current() is before
    weights.forget()
    assert weights.current() is not before


def test_other_kinds_of_tensors():
    part = nn.Module()
    for dtype in (torch.bfloat16, torch.complex64, torch.bool, torch.int64, torch.float64):
        part.register_buffer(str(dtype).replace(".", "_"), torch.ones(2, 3).to(dtype))
    part.register_buffer("none", torch.empty(0))
    part.register_buffer("number", torch.tensor(2.0))
    weights = record(part)
    before = weights.current()
    assert weights.current() is before
    part.number.data.add_(1)
    assert weights.current() is not before


NORMALISED = spread_policy(with_statistics(make_net()), IMAGES)


def test_tune_measures_and_sets_what_was_fastest():
    net = with_statistics(make_net())
    expected = xl.predict(net, IMAGES, NORMALISED)
    tuning = net.tune(IMAGES, policy=NORMALISED, seconds=0.05, backend="torch")
    assert net.tuning is tuning
    assert tuning.micro_batch > 0
    tried = tuning.measured["ms_per_sample"]
    assert {row["channels_last"] for row in tried} == {True, False}
    assert len({row["micro_batch"] for row in tried}) >= 5
    assert min(row["ms"] for row in tried) > 0
    assert 0 <= tuning.measured["bfloat16_agreement"] <= 1
    answers = xl.predict(net, IMAGES, NORMALISED)
    assert (answers.exits == expected.exits).float().mean() >= 0.99
    assert Tuning.from_dict(tuning.to_dict()) == tuning


@pytest.mark.slow
def test_tune_compares_the_exits_that_a_gate_chooses():
    net = make_net()
    alike = IMAGES[:1] + 1e-4 * torch.randn(70, 3, 16, 16)
    margin = xl.collect(net, alike).gate_features[:, 0, 0].median().item()
    narrow = (0.0, 1e6, 0.0, 0.0, -1e6 * margin)  # so narrow that rounding decides
    net.tune(alike, policy=xl.Policy((0.5, 0.0), gate=xl.types.Gate((narrow, (0.0,) * 5))), seconds=0.01, backend="torch")
    assert net.tuning.measured["bfloat16_agreement"] < 0.9


@pytest.mark.slow
def test_tune_takes_bfloat16_only_with_enough_samples_and_where_decisions_are_kept():
    net = make_net()
    net.tune(IMAGES, seconds=0.01, backend="torch")  # 70 without a difference show no more than 95.8 %
    assert net.tuning.precision == "float32"
    assert not any(row["precision"] == "bfloat16" for row in net.tuning.measured["ms_per_sample"])
    net.tune(IMAGES, min_agreement=0.5, seconds=0.01, backend="torch")
    assert any(row["precision"] == "bfloat16" for row in net.tuning.measured["ms_per_sample"])
    alike = IMAGES[:1] + 1e-4 * torch.randn(70, 3, 16, 16)
    with torch.no_grad():
        for k, out in enumerate(net(alike)):  # two classes so close that rounding decides between them
            linear = net.head(k).classifier
            linear.weight[1:] = 0
            linear.bias[1] = out.logits[:, 0].median()
            linear.bias[2:] = -1e4
    net.tune(alike, seconds=0.01, backend="torch")
    assert net.tuning.measured["bfloat16_agreement"] < 0.99
    assert net.tuning.precision == "float32"
    net.tune(IMAGES[:2], precision="bfloat16", seconds=0.01, backend="torch")
    assert net.tuning.precision == "bfloat16"
    net.tune(IMAGES, precision="float32", seconds=0.01, backend="torch")
    assert "bfloat16_agreement" not in net.tuning.measured


@pytest.mark.slow
@pytest.mark.usefixtures("files_written_once")
def test_onnx_runtime_is_tried_and_its_files_are_kept(monkeypatch):
    pytest.importorskip("onnxruntime")
    net = with_statistics(make_net())
    expected = xl.predict(net, IMAGES, NORMALISED)
    assert {row["backend"] for row in net.tune(IMAGES, seconds=0.01).measured["ms_per_sample"]} == {"torch", "onnx"}
    tuning = net.tune(IMAGES, seconds=0.01, backend="onnx")
    assert {row["backend"] for row in tuning.measured["ms_per_sample"]} == {tuning.backend} == {"onnx"}
    monkeypatch.setattr("exitlens.model.engine.onnx_files.write_segments", None)  # it is not written again
    assert xl.predict(net, IMAGES, NORMALISED).exits.tolist() == expected.exits.tolist()


def test_networks_that_onnx_runtime_cannot_run(monkeypatch):
    net = make_net()
    with pytest.raises(xl.errors.EngineError, match="does not run in bfloat16"):
        net.tune(IMAGES, precision="bfloat16", seconds=0.01, backend="onnx")
    refusal = xl.errors.EngineError("an odd layer")

    def refuse_onnx(stages, heads, tuning, example):
        if tuning.backend == "onnx":
            raise refusal
        return build_engine(stages, heads, tuning, example)

    monkeypatch.setattr("exitlens.model.engine.manager.build_engine", refuse_onnx)
    tuning = net.tune(IMAGES, precision="float32", seconds=0.01)
    assert tuning.backend == "torch"
    assert "an odd layer" in tuning.measured["onnx"]
    with pytest.raises(xl.errors.EngineError, match="an odd layer"):
        net.tune(IMAGES, seconds=0.01, backend="onnx")
    refusal = xl.errors.MissingExtraError("onnxruntime", "onnx", "backend='onnx'")
    assert "onnxruntime" in net.tune(IMAGES, precision="float32", seconds=0.01).measured["onnx"]
    monkeypatch.setattr("exitlens.model.engine.manager.is_installed", lambda *names: False)
    assert "onnx" not in net.tune(IMAGES, precision="float32", seconds=0.01).measured


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"precision": "half"}, "precision"),
        ({"backend": "tensorrt"}, "backend"),
        ({"min_agreement": 0.0}, "min_agreement"),
        ({"seconds": 0}, "seconds"),
        ({"policy": xl.Policy((0.5,))}, "exits"),
        ({"example": IMAGES[0]}, "add the batch axis"),
    ],
)
def test_bad_arguments_of_tune(values, message):
    with pytest.raises(xl.ExitlensError, match=message):
        make_net().tune(**{"example": IMAGES} | values)
