"""net.compile(): the same answers, no compilation after the warm-up whatever the number of survivors, no stale weights."""

import copy
import math
import shutil

import pytest
import torch

import exitlens as xl
from tests.conftest import make_net, spread_policy

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
IMAGES = torch.randn(300, 3, 16, 16, generator=torch.Generator().manual_seed(5))


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


def test_answers_are_those_of_eager_and_nothing_is_compiled_again(compiled):
    net, eager, policy = compiled
    with torch._dynamo.config.patch(error_on_recompile=True):
        for size in (*range(1, 20), 64, 300):
            one, other = xl.predict(net, IMAGES[:size], policy), xl.predict(eager, IMAGES[:size], policy)
            assert one.exits.tolist() == other.exits.tolist()
            assert one.labels.tolist() == other.labels.tolist()
            torch.testing.assert_close(one.probabilities, other.probabilities, atol=1e-5, rtol=1e-4)
        with torch.inference_mode():
            inner = IMAGES[:5].clone()
        for images in (IMAGES[:5].contiguous(memory_format=torch.channels_last), inner):
            assert xl.predict(net, images, policy).exits.tolist() == other.exits[:5].tolist()
        assert len(list(xl.predict_stream(net, IMAGES.split(7), policy))) == 43


def test_changed_weights_are_refused_not_answered_with_old_ones(compiled):
    _, eager, policy = compiled
    net = copy.deepcopy(eager)
    net.compile(xl.Policy((math.inf, 0.5)))
    xl.predict(net, IMAGES[:3], policy=xl.Policy((math.inf, 0.5)))
    with torch.no_grad():
        net.head(2).classifier.bias.add_(1)
    with pytest.raises(xl.EngineError, match=r"changed after net.compile\(\): call net.compile\(\) again"):
        xl.predict(net, IMAGES[:3], policy)
    net.tuning = xl.Tuning()  # back to eager
    assert len(xl.predict(net, IMAGES[:3], policy)) == 3


def test_a_callers_inference_mode_compiles_nothing_again(compiled):
    net, eager, policy = compiled
    with torch._dynamo.config.patch(error_on_recompile=True), torch.inference_mode():
        one = xl.predict(net, IMAGES[:9].clone(), policy)
    assert one.exits.tolist() == xl.predict(eager, IMAGES[:9], policy).exits.tolist()


def test_a_compilation_that_is_broken_off_changes_nothing(compiled, monkeypatch):
    _, eager, policy = compiled
    net = copy.deepcopy(eager)

    def stops(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "compile", stops)
    with pytest.raises(KeyboardInterrupt):
        net.compile()
    assert len(xl.predict(net, IMAGES[:3], policy)) == 3


def test_a_copy_is_not_compiled(compiled):
    net, _, policy = compiled
    twin = copy.deepcopy(net)
    with torch.no_grad():
        twin.head(2).classifier.bias.add_(1)
    assert len(xl.predict(twin, IMAGES[:3], policy)) == 3


def test_a_machine_that_cannot_compile_is_told_and_answers_as_before(compiled, monkeypatch):
    _, eager, policy = compiled
    net = copy.deepcopy(eager)

    def fails(*_, **__):
        def run(*_, **__):
            raise RuntimeError("no compiler\nin the path")

        return run

    monkeypatch.setattr(torch, "compile", fails)
    with pytest.raises(xl.EngineError, match=r"stage 0 here \(RuntimeError: no compiler\): it needs a C\+\+ compiler"):
        net.compile()
    assert len(xl.predict(net, IMAGES[:3], policy)) == 3
    with pytest.raises(xl.PolicyError, match="exits"):
        net.compile(xl.Policy((0.5,)))


def test_progress_is_shown(compiled, capsys, monkeypatch):
    _, eager, _ = compiled
    net = copy.deepcopy(eager)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    net.compile(progress=True)
    assert "compiling" in capsys.readouterr().out
