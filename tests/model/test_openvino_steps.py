"""net.compile(backend="openvino"): the same answers from OpenVINO, for any number of samples, by many threads."""

import copy
import math
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import exitlens as xl
from exitlens.functional.scores import score_of
from tests.conftest import make_net, spread_policy
from tests.texts import make_text_net, make_texts

pytest.importorskip("openvino")
IMAGES = torch.randn(300, 3, 16, 16, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def compiled() -> tuple[xl.ExitNet, xl.ExitNet, xl.Policy]:
    """The same network twice, by OpenVINO and by PyTorch, and a policy that uses every exit."""
    net = make_net()
    policy = spread_policy(net, IMAGES)
    eager = copy.deepcopy(net)
    net.tuning = xl.Tuning(micro_batch=8, channels_last=True, folded=True)
    seconds = net.compile(backend="openvino")
    assert sorted(seconds) == [0, 1, 2]
    return net, eager, policy


@pytest.mark.parametrize("attention", [False, True])
def test_answers_are_those_of_pytorch(compiled, attention):
    net, eager, policy = compiled
    for size in (1, 2, 3, 9, 300):
        one = xl.predict(net, IMAGES[:size], policy, attention=attention)
        other = xl.predict(eager, IMAGES[:size], policy, attention=attention)
        assert one.exits.tolist() == other.exits.tolist()
        torch.testing.assert_close(one.probabilities, other.probabilities, atol=1e-5, rtol=1e-4)
        for mine, its in zip(one.attention or (), other.attention or (), strict=True):
            torch.testing.assert_close(mine, its, atol=1e-5, rtol=1e-4)
    assert len(one.exits.unique()) == 3
    streamed = torch.cat([pred.exits for pred in xl.predict(net, IMAGES.split(7), policy)])
    assert streamed.tolist() == one.exits.tolist()


@pytest.mark.parametrize("score", ["entropy", "margin"])
def test_every_score_and_temperature_and_exits_that_never_fire(compiled, score):
    net, eager, _ = compiled
    p = (xl.collect(eager, IMAGES).logits[:, 1] / 0.5).softmax(1)
    policy = xl.Policy((math.inf, score_of(p, score).median().item() + 1e-4), score=score, temperatures=(1.0, 0.5, 2.0))
    one, other = xl.predict(net, IMAGES, policy), xl.predict(eager, IMAGES, policy)
    assert one.exits.tolist() == other.exits.tolist()
    assert set(one.exits.tolist()) == {1, 2}
    torch.testing.assert_close(one.confidence, other.confidence, atol=1e-5, rtol=1e-4)


def test_results_are_not_overwritten_and_threads_share_it(compiled):
    net, eager, policy = compiled
    parts = IMAGES.split(20)
    expected = [xl.predict(eager, part, policy) for part in parts]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda part: xl.predict(net, part, policy), parts * 3))
    for one, other in zip(found, expected * 3, strict=True):
        assert one.exits.tolist() == other.exits.tolist()
        torch.testing.assert_close(one.probabilities, other.probabilities, atol=1e-5, rtol=1e-4)


def test_inputs_in_any_memory_format_are_left_as_they_are(compiled):
    net, eager, policy = compiled
    with torch.inference_mode():
        inner = IMAGES[:5].clone()
    for images in (IMAGES[:5].contiguous(memory_format=torch.channels_last), IMAGES[:10:2], inner):
        before = images.clone()
        assert xl.predict(net, images, policy).exits.tolist() == xl.predict(eager, images, policy).exits.tolist()
        assert torch.equal(images, before)


def test_images_of_another_size(compiled):
    net, eager, policy = compiled
    wide = torch.randn(5, 3, 16, 32)
    try:
        expected = xl.predict(eager, wide, policy).exits.tolist()
    except xl.ExitlensError:
        pytest.skip("this network takes one size")
    assert xl.predict(net, wide, policy).exits.tolist() == expected
    assert xl.predict(net, IMAGES[:5], policy).exits.tolist() == xl.predict(eager, IMAGES[:5], policy).exits.tolist()


def test_traces_and_explanations_are_the_networks_own(compiled):
    net, eager, policy = compiled
    torch.testing.assert_close(
        xl.collect(net, IMAGES[:9]).logits, xl.collect(eager, IMAGES[:9]).logits, atol=1e-5, rtol=1e-4
    )
    assert xl.explain(net, IMAGES[:1], policy).answered == xl.explain(eager, IMAGES[:1], policy).answered


def test_texts_with_padding():
    net, texts = make_text_net(), make_texts()
    policy = spread_policy(net, texts)
    expected = xl.predict(net, texts, policy, attention=True)
    net.compile(backend="openvino", attention=True)
    found = xl.predict(net, texts, policy, attention=True)
    assert found.exits.tolist() == expected.exits.tolist()
    torch.testing.assert_close(found.probabilities, expected.probabilities, atol=1e-5, rtol=1e-4)
    for mine, its in zip(found.attention, expected.attention, strict=True):
        torch.testing.assert_close(mine, its, atol=1e-5, rtol=1e-4)
    assert xl.predict(net, {name: t[:1] for name, t in texts.items()}, policy).exits.tolist() == expected.exits[:1].tolist()


def test_changed_weights_are_refused(compiled):
    _, eager, policy = compiled
    net = copy.deepcopy(eager)
    net.compile(policy, backend="openvino")
    with torch.no_grad():
        net.head(2).classifier.bias.add_(1)
    with pytest.raises(xl.EngineError, match=r"changed after net.compile\(\)"):
        xl.predict(net, IMAGES[:3], policy)


def test_what_it_cannot_run_is_said(compiled, monkeypatch):
    _, eager, policy = compiled
    net = copy.deepcopy(eager)
    with pytest.raises(xl.InputError, match=r"backend: expected one of .*got 'tensorrt'"):
        net.compile(backend="tensorrt")
    with pytest.raises(
        xl.EngineError, match=r"backend: openvino runs float32 networks on the CPU, this one is torch.float64"
    ):
        copy.deepcopy(eager).double().compile(backend="openvino")
    net.tuning = xl.Tuning(precision="bfloat16")
    with pytest.raises(xl.EngineError, match=r"openvino answers in float32, net.tuning says bfloat16"):
        net.compile(backend="openvino")
    net.tuning = xl.Tuning()
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(xl.MissingExtraError, match=r"pip install 'exitlens\[openvino\]'"):
        net.compile(backend="openvino")
    assert len(xl.predict(net, IMAGES[:3], policy)) == 3  # as before


def test_nothing_is_reported_to_anyone(compiled, monkeypatch):
    telemetry = pytest.importorskip("openvino_telemetry")

    def fails(*_, **__):
        raise AssertionError("usage statistics")

    monkeypatch.setattr(telemetry.Telemetry, "__init__", fails)
    copy.deepcopy(compiled[1]).compile(backend="openvino")
