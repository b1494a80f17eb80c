"""The engine on ONNX Runtime gives what the network gives, and says what it cannot run."""

import copy

import pytest
import torch

import exitlens as xl
from exitlens.model.engine.onnx import engine as onnx_engine
from tests.conftest import make_net, spread_policy
from tests.texts import make_text_net, make_texts

pytest.importorskip("onnxruntime")
ONNX = xl.Tuning(backend="onnx")


@pytest.fixture(scope="module")
def tuned():
    """The tiny network on ONNX Runtime; its files are written once."""
    net = make_net()
    net.tuning = ONNX
    return net


@pytest.mark.parametrize("batch", [1, 2, 40])
def test_answers_and_maps_are_the_networks(tuned, net, images, batch):
    policy = spread_policy(net, images)
    expected, found = (xl.predict(one, images[:batch], policy, attention=True) for one in (net, tuned))
    assert found.exits.tolist() == expected.exits.tolist()
    assert found.labels.tolist() == expected.labels.tolist()
    assert torch.allclose(found.probabilities, expected.probabilities, atol=1e-5)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found.attention, expected.attention, strict=True))


def test_exits_that_never_fire_are_passed(tuned, net, images):
    for policy in (xl.Policy.never(3), xl.Policy((float("inf"), 0.6))):
        expected, found = (xl.predict(one, images, policy) for one in (net, tuned))
        assert found.exits.tolist() == expected.exits.tolist()


def test_traces_streams_and_explanations(tuned, net, images, tiny_set):
    expected, found = xl.collect(net, tiny_set), xl.collect(tuned, tiny_set)
    assert torch.allclose(expected.logits, found.logits, atol=1e-4)
    assert torch.allclose(expected.divergence, found.divergence, atol=1e-5)
    assert found.network == expected.network
    policy = xl.Policy((0.6, 0.6))
    streamed = list(xl.predict_stream(tuned, [images[:7], images[7:20]], policy))
    assert torch.cat([one.labels for one in streamed]).tolist() == xl.predict(net, images[:20], policy).labels.tolist()
    assert xl.explain(tuned, images[0], policy).answered == xl.explain(net, images[0], policy).answered


def test_weights_that_change_are_written_again(images):
    net = make_net()
    net.tuning = ONNX
    before = xl.predict(net, images, xl.Policy((0.0, 0.0))).probabilities.clone()
    with torch.no_grad():
        net.head(0).classifier.weight.mul_(-1)
    after = xl.predict(net, images, xl.Policy((0.0, 0.0))).probabilities
    plain = copy.deepcopy(net)
    plain.tuning = xl.Tuning()
    assert not torch.allclose(before, after, atol=1e-3)
    assert torch.allclose(after, xl.predict(plain, images, xl.Policy((0.0, 0.0))).probabilities, atol=1e-5)


def test_texts():
    net, inputs = make_text_net(), make_texts(9)
    policy = xl.Policy((0.4,) * (net.num_exits - 1))
    expected = xl.predict(net, inputs, policy)
    net.tuning = ONNX
    found = xl.predict(net, inputs, policy)
    assert found.exits.tolist() == expected.exits.tolist()
    assert torch.allclose(found.probabilities, expected.probabilities, atol=1e-4)


def test_another_precision_is_refused_before_anything_is_written(monkeypatch, images):
    monkeypatch.setattr(onnx_engine, "write_segments", None)
    net = make_net().double()
    net.tuning = ONNX
    with pytest.raises(xl.EngineError, match=r"float32 on the CPU.*net\.tuning = Tuning\(\)"):
        xl.predict(net, images.double(), xl.Policy((0.5, 0.5)))


def test_what_it_cannot_run(monkeypatch, images):
    with pytest.raises(xl.InputError, match="bfloat16"):
        xl.Tuning(backend="onnx", precision="bfloat16")
    with pytest.raises(xl.InputError, match="backend"):
        xl.Tuning(backend="tensorflow")
    monkeypatch.setattr(onnx_engine, "write_segments", lambda *_: (_ for _ in ()).throw(xl.ExportError("an odd layer")))
    net = make_net()
    net.tuning = ONNX
    with pytest.raises(xl.EngineError, match=r"an odd layer.*backend='torch'"):
        xl.predict(net, images, xl.Policy.never(3))
