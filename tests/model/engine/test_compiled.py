"""net.compile(): the same answers, no compilation after the warm-up, no stale weights. What compiles for real is slow."""

import copy
import math
import shutil

import pytest
import torch

import exitlens as xl
from tests.conftest import make_net, spread_policy

IMAGES = torch.randn(300, 3, 16, 16, generator=torch.Generator().manual_seed(5))
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
GATES = (None, xl.Gate(((0.1, 0.2, 0.3, 0.1),) * 2, (0.5, 0.5)))
POLICIES = [
    xl.Policy(thresholds, score, gate=gate)
    for gate in GATES
    for thresholds, score in (((0.4, math.inf), "margin"), ((math.inf, 0.4), "entropy"), ((math.inf, math.inf), "margin"))
]


class Counter:
    """In place of torch.compile: leaves functions as they are and counts them."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, function, **options):
        assert options == {"options": {"freezing": True}}
        self.names.append(function.__name__)
        return function


@pytest.fixture
def counter(monkeypatch) -> Counter:
    counter = Counter()
    monkeypatch.setattr(torch, "compile", counter)
    return counter


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("attention", [False, True])
def test_the_warm_up_compiles_what_the_router_calls_and_nothing_else(counter, policy, attention):
    net = make_net()
    net.compile(policy, attention=attention)
    compiled = list(counter.names)
    assert len(compiled) == 3
    for size in (1, 5, 60):
        xl.predict(net, IMAGES[:size], policy, attention=attention)
    list(xl.predict_stream(net, IMAGES.split(40), policy, attention=attention))
    assert counter.names == compiled


def test_an_exit_that_cannot_fire_is_compiled_without_its_head(counter):
    make_net().compile(POLICIES[3])  # a gate, and the last early exit never fires
    assert [name.split("_")[1] for name in counter.names] == ["answer", "advance", "answer"]
    counter.names.clear()
    make_net().compile(POLICIES[4])  # the first exit's map is a gate feature of the second
    assert [name.split("_")[1] for name in counter.names] == ["answer", "answer", "answer"]


def test_faithfulness_collect_and_explain_compile_nothing(counter, tiny_set):
    net, policy = make_net(), POLICIES[0]
    net.compile(policy)
    compiled = list(counter.names)
    xl.faithfulness(net, tiny_set, samples=4)
    xl.collect(net, IMAGES[:4])
    xl.explain(net, IMAGES[0], policy)
    assert counter.names == compiled


@pytest.mark.slow
@needs_compiler
def test_an_untuned_network_compiles_nothing_while_it_answers():
    net, policy = make_net(), POLICIES[3]
    net.compile(policy)
    with torch._dynamo.config.patch(error_on_recompile=True), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda *_, **__: pytest.fail("compiled while it answered"))
        for size in (1, 2, 15, 16, 30, 300):  # from 16 on PyTorch chooses convolutions in another way
            assert len(xl.predict(net, IMAGES[:size], policy)) == size


@pytest.fixture(scope="module")
def compiled() -> tuple[xl.ExitNet, xl.ExitNet, xl.Policy]:
    """The same network twice, compiled and not, and a policy that uses every exit."""
    net = make_net()
    policy = spread_policy(net, IMAGES)
    eager = copy.deepcopy(net)
    net.tuning = xl.Tuning(micro_batch=8)
    seconds = net.compile()
    assert sorted(seconds) == [0, 1, 2]
    assert all(s > 0 for s in seconds.values())
    return net, eager, policy


@pytest.mark.slow
@needs_compiler
def test_answers_are_those_of_eager_and_nothing_is_compiled_again(compiled):
    net, eager, policy = compiled
    with torch._dynamo.config.patch(error_on_recompile=True):
        for size in (*range(1, 20), 64, 300):
            pred, expected = xl.predict(net, IMAGES[:size], policy), xl.predict(eager, IMAGES[:size], policy)
            assert pred.exits.tolist() == expected.exits.tolist()
            assert pred.labels.tolist() == expected.labels.tolist()
            torch.testing.assert_close(pred.probabilities, expected.probabilities, atol=1e-5, rtol=1e-4)
        with torch.inference_mode():
            inner = IMAGES[:5].clone()
        for images in (IMAGES[:5].contiguous(memory_format=torch.channels_last), inner):
            assert xl.predict(net, images, policy).exits.tolist() == expected.exits[:5].tolist()
        assert len(list(xl.predict_stream(net, IMAGES.split(7), policy))) == 43


def test_changed_weights_are_refused_not_answered_with_old_ones(counter):
    net, policy = make_net(), xl.Policy((math.inf, 0.5))
    net.compile(policy)
    xl.predict(net, IMAGES[:3], policy)
    with torch.no_grad():
        net.head(2).classifier.bias.add_(1)
    with pytest.raises(xl.EngineError, match=r"changed after net.compile\(\)\. Fix: call net.compile\(\) again"):
        xl.predict(net, IMAGES[:3], policy)
    net.tuning = xl.Tuning()  # back to eager
    assert len(xl.predict(net, IMAGES[:3], policy)) == 3


@pytest.mark.slow
@needs_compiler
def test_a_callers_inference_mode_compiles_nothing_again(compiled):
    net, eager, policy = compiled
    with torch._dynamo.config.patch(error_on_recompile=True), torch.inference_mode():
        pred = xl.predict(net, IMAGES[:9].clone(), policy)
    assert pred.exits.tolist() == xl.predict(eager, IMAGES[:9], policy).exits.tolist()


def test_a_compilation_that_is_broken_off_changes_nothing(monkeypatch):
    net, policy = make_net(), POLICIES[0]

    def stops(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "compile", stops)
    with pytest.raises(KeyboardInterrupt):
        net.compile()
    assert len(xl.predict(net, IMAGES[:3], policy)) == 3


def test_a_copy_is_not_compiled(counter):
    net, policy = make_net(), POLICIES[0]
    net.compile()
    twin = copy.deepcopy(net)
    with torch.no_grad():
        twin.head(2).classifier.bias.add_(1)
    assert len(xl.predict(twin, IMAGES[:3], policy)) == 3


def test_a_machine_that_cannot_compile_is_told_and_answers_as_before(monkeypatch):
    net, policy = make_net(), POLICIES[0]

    def fails(*_, **__):
        def run(*_, **__):
            raise RuntimeError("no compiler\nin the path")

        return run

    monkeypatch.setattr(torch, "compile", fails)
    with pytest.raises(xl.EngineError, match=r"stage 0 here \(RuntimeError: no compiler\)\. Fix: install a C\+\+ compiler"):
        net.compile()
    assert len(xl.predict(net, IMAGES[:3], policy)) == 3
    with pytest.raises(xl.PolicyError, match="exits"):
        net.compile(xl.Policy((0.5,)))


def test_progress_is_shown(counter, capsys):
    net = make_net()
    net.compile(progress=True)
    assert "compiling" in capsys.readouterr().out
