"""An engine, step by step, against the network that it was made of; and net.compile().

Compiled networks give the same answers, compile nothing after the warm-up, and refuse stale weights.
"""

import copy
import math
import shutil

import pytest
import torch

import exitlens as xl
from exitlens.functional.routing import measure_evidence_support
from exitlens.model.engine import manager
from exitlens.model.engine.engine import Engine
from exitlens.model.engine.tuning import Tuning
from tests.conftest import TinyNet, make_net, spread_policy
from tests.model.engine.networks import IMAGES, with_statistics

MANY = torch.randn(300, 3, 16, 16, generator=torch.Generator().manual_seed(5))
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
GATES = (None, xl.types.Gate(((0.2, 0.1, 0.1, 0.3, -0.2),) * 2, (0.5, 0.5)))
POLICIES = [
    xl.Policy(thresholds, score, gate=gate)
    for gate in GATES
    for thresholds, score in (((0.4, math.inf), "margin"), ((math.inf, 0.4), "entropy"), ((math.inf, math.inf), "margin"))
]
FORMS = [Tuning(), Tuning(channels_last=True, folded=True)]


@pytest.mark.parametrize("tuning", FORMS)
@pytest.mark.parametrize("final", ["head", "keep"])
def test_every_way_to_run_an_exit_gives_the_same(tuning, final):
    net = with_statistics(make_net(final))
    with torch.no_grad():
        expected = net(IMAGES[:9])
    engine = Engine.prepare(*net.engine.parts, tuning)
    with engine.mode():
        entered = engine.enter((IMAGES[:9],))
        outputs, explained = engine.compute_outputs(entered), list(engine.iterate_outputs(entered))
        activations = entered
        for k, out in enumerate(expected):
            step = engine.run_exit(k, activations, 2.0, "margin", "support")
            assert engine.run_exit(k, activations, 2.0, "margin").attention is None
            assert engine.run_exit(k, activations, 2.0, "margin", "attention").support is None
            support = measure_evidence_support(out.evidence, out.logits, out.attention)
            torch.testing.assert_close(step.support, support, atol=1e-4, rtol=1e-4)
            activations = engine.run_stage(k, activations)
            for logits in (outputs[k][0], explained[k].logits, engine.compute_logits(k, entered)):
                torch.testing.assert_close(logits, out.logits, atol=1e-4, rtol=1e-4)
            for attention in (outputs[k][1], explained[k].attention, step.attention):
                torch.testing.assert_close(attention, out.attention, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(explained[k].evidence, out.evidence, atol=1e-4, rtol=1e-4)
            p = (out.logits / 2).softmax(1)
            first, second = p.topk(2, 1).values.unbind(1)
            torch.testing.assert_close(step.probabilities, p, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(step.scores, first - second, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(step.activations[0], activations[0])


def test_a_stage_runs_when_its_exit_is_asked_for():
    net, ran = make_net(), []
    stages = [lambda *a, k=k: (ran.append(k), net.stage(k)(*a))[1] for k in range(3)]
    engine = Engine(stages, [net.head(k) for k in range(3)], Tuning())
    next(engine.iterate_outputs((IMAGES[:2],)))
    assert ran == [0]
    engine.compute_logits(1, (IMAGES[:2],))
    assert ran == [0, 0, 1]


@pytest.fixture
def compiled_names(monkeypatch) -> list[str]:
    """Names of the functions given to torch.compile, which returns them unchanged."""
    names: list[str] = []

    def compile_nothing(function, **options):
        assert options == {"options": {"freezing": True}}
        names.append(function.__name__)
        return function

    monkeypatch.setattr(torch, "compile", compile_nothing)
    return names


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("attention", [False, True])
def test_the_warm_up_compiles_what_the_router_calls_and_nothing_else(compiled_names, policy, attention, tiny_set):
    net = make_net()
    net.compile(policy, attention=attention)
    kinds = ["_".join(name.split("_")[1:3]) for name in compiled_names]
    assert len(kinds) == 3
    if policy == POLICIES[3]:  # a gate, and the last early exit never fires
        assert kinds == ["run_exit", "run_stage", "run_exit"]
    if policy == POLICIES[4]:  # the first exit never fires
        assert kinds == ["run_stage", "run_exit", "run_exit"]
    for size in (1, 5, 60):
        xl.predict(net, MANY[:size], policy, attention=attention)
    list(xl.predict_stream(net, MANY.split(40), policy, attention=attention))
    if policy == POLICIES[0]:
        xl.measure_faithfulness(net, tiny_set, samples=4)
        xl.collect(net, MANY[:4])
        xl.explain(net, MANY[0], policy)
    assert len(compiled_names) == 3


@pytest.mark.slow
@needs_compiler
def test_an_untuned_network_compiles_nothing_while_it_answers(monkeypatch):
    net, eager, policy = make_net(), make_net(), POLICIES[3]
    net.compile(policy)
    monkeypatch.setattr(torch, "compile", lambda *_, **__: pytest.fail("compiled while it answered"))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for size in (1, 2, 15, 16, 30, 300):  # from 16 on PyTorch chooses convolutions in another way
            pred, expected = (xl.predict(model, MANY[:size], policy, attention=True) for model in (net, eager))
            assert pred.exits.tolist() == expected.exits.tolist()
            torch.testing.assert_close(pred.trust, expected.trust, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(pred.attention, expected.attention, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@needs_compiler
def test_answers_are_those_of_eager_and_nothing_is_compiled_again():
    net = xl.attach(TinyNet(), ["b"], 4, torch.zeros(1, 3, 16, 16)).eval()
    policy, eager = spread_policy(net, MANY), copy.deepcopy(net)
    net.tuning = xl.Tuning(micro_batch=8)
    seconds = net.compile()
    assert sorted(seconds) == [0, 1]
    assert all(s > 0 for s in seconds.values())
    with torch._dynamo.config.patch(error_on_recompile=True):
        for size in (*range(1, 20), 64, 300):
            pred, expected = xl.predict(net, MANY[:size], policy), xl.predict(eager, MANY[:size], policy)
            assert pred.exits.tolist() == expected.exits.tolist()
            assert pred.labels.tolist() == expected.labels.tolist()
            torch.testing.assert_close(pred.probabilities, expected.probabilities, atol=1e-5, rtol=1e-4)
        with torch.inference_mode():
            inner = MANY[:5].clone()
        for images in (MANY[:5].contiguous(memory_format=torch.channels_last), inner):
            assert xl.predict(net, images, policy).exits.tolist() == expected.exits[:5].tolist()
        assert len(list(xl.predict_stream(net, MANY.split(7), policy))) == 43
        with torch.inference_mode():
            assert xl.predict(net, inner, policy).exits.tolist() == expected.exits[:5].tolist()


@pytest.mark.usefixtures("compiled_names")
def test_changed_weights_are_refused_but_not_by_a_copy_which_is_not_compiled():
    net, policy = make_net(), xl.Policy((math.inf, 0.5))
    net.compile(policy)
    xl.predict(net, MANY[:3], policy)
    twin = copy.deepcopy(net)
    with torch.no_grad():
        twin.head(2).classifier.bias.add_(1)
    assert len(xl.predict(twin, MANY[:3], policy)) == 3
    with torch.no_grad():
        net.head(2).classifier.bias.add_(1)
    with pytest.raises(xl.errors.EngineError, match=r"changed after net.compile\(\)\. Fix: call net.compile\(\) again"):
        xl.predict(net, MANY[:3], policy)
    net.tuning = xl.Tuning()  # back to eager
    assert len(xl.predict(net, MANY[:3], policy)) == 3


@pytest.mark.parametrize(
    ("reason", "error", "message"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt, None),
        (
            RuntimeError("no compiler\nin the path"),
            xl.errors.EngineError,
            r"stage 0 here \(RuntimeError: no compiler\)\. Fix: install a C\+\+ compiler",
        ),
    ],
)
def test_a_compilation_that_stops_or_fails_changes_nothing(monkeypatch, reason, error, message):
    net, policy = make_net(), POLICIES[0]

    def fail(*_):
        raise reason

    monkeypatch.setattr(torch, "compile", lambda *_, **__: fail)
    with pytest.raises(error, match=message):
        net.compile()
    assert len(xl.predict(net, MANY[:3], policy)) == 3
    with pytest.raises(xl.errors.PolicyError, match="exits"):
        net.compile(xl.Policy((0.5,)))


@pytest.mark.usefixtures("compiled_names")
def test_progress_is_shown(monkeypatch):
    shown = []
    monkeypatch.setattr(manager, "track", lambda steps, name, total: shown.append((name, total)) or steps)
    make_net().compile(progress=True)
    assert shown == [("compiling", 3)]
