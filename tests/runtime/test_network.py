"""Answers, exits, gates and maps are those of ``exitlens.predict``; arrays and files that do not fit are refused."""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace

import numpy as np
import pytest
from PIL import Image

import exitlens as xl
import exitlens_runtime as er
from exitlens_runtime.reading import Preprocess
from tests.exported import check_answers
from tests.runtime.conftest import NET
from tests.texts import AT, make_bert, make_texts


@pytest.mark.parametrize("batch", [1, 3, 40])
@pytest.mark.parametrize("limits", [(0.8, 0.7), (0.0, 0.0), (math.inf, 0.5), (math.inf, math.inf)])
def test_answers_are_those_of_predict(opened, images, batch, limits):
    policy = xl.Policy(limits)
    expected = xl.predict(NET, images[:batch], policy, attention=True)
    pred = opened.with_policy(policy.to_dict()).predict(images[:batch].numpy(), attention=True)
    check_answers(pred, expected)
    assert pred.index.tolist() == list(range(batch))


def test_answers_are_kept_while_others_are_made(opened, images):
    first = opened.predict(images[:4].numpy(), attention=True)
    copies = [array.copy() for array in (first.probabilities, *first.attention)]
    opened.predict(images[4:].numpy(), attention=True)
    assert all((a == b).all() for a, b in zip(copies, (first.probabilities, *first.attention), strict=True))


def test_threads_may_share_it(opened, images):
    alone = [opened.predict(images[i : i + 2].numpy()).probabilities for i in range(0, 30, 2)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda i: opened.predict(images[i : i + 2].numpy()).probabilities, range(0, 30, 2)))
    assert all(np.allclose(a, b, atol=1e-6) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize("limits", [(0.6, 0.5), pytest.param((math.inf, 0.5), marks=pytest.mark.slow), (0.0, 0.0)])
def test_a_gate_decides_as_in_the_library(images, tmp_path, limits):
    weights = (0.3, 0.2, 0.1, 0.5, -1.0), (0.2, 0.2, 0.0, -0.5, -0.5)
    policy = xl.Policy(limits, gate=xl.types.Gate(weights, (0.4, 0.4)))
    pred = er.load(xl.export(NET, policy, tmp_path / "e"), threads=1).predict(images.numpy())
    expected = xl.predict(NET, images, policy)
    check_answers(pred, expected)
    assert np.allclose(pred.trust, expected.trust.numpy(), atol=1e-5)
    assert pred.refused.tolist() == expected.refused.tolist()


def test_reasons_of_a_gate(opened):
    gate = xl.types.Gate(((0.0,) * 5,) * 2, (0.4, 0.4))
    gated = opened.with_policy(xl.Policy((0.6, 0.5), gate=gate).to_dict())
    p, none = np.full((3, 4), 0.25, np.float32), np.array([-1, -1, 1])
    pred = er.Prediction(
        none, np.array([1, 2, 2]), np.array([0.455, 0.7, 0.8]), p, trust=np.array([0.9, 1, 1]), refused=none
    )
    assert [gated.give_reason(pred, i) for i in range(3)] == [
        "trust of the gate 0.900 >= 0.500; max probability 0.455",
        "no earlier exit was sure enough; max probability 0.700",
        "exit 1 was sure enough, but the gate refused its answer; max probability 0.800",
    ]


@pytest.mark.parametrize("gate", [None, xl.types.Gate(((0.1,) * 5,) * 2, (0.5, math.inf))])
@pytest.mark.slow
def test_the_promise_of_binding_travels_with_its_very_policy(opened, gate):
    policy = xl.Policy((0.3, math.inf), gate=gate)
    binding = xl.types.BindingCertificate(
        0.2, 0.1, 0.929, 0.94, 1100, None, ((1000, 0.9), (80, 1.0), (20, None)), policy.rule_hash(), 0.2, 1100
    )
    policy = replace(policy, binding=binding)
    net, image = opened.with_policy(policy.to_dict()), np.zeros((1, 3, 16, 16), np.float32)
    assert [net.policy.describe_binding(k) for k in range(3)] == [policy.describe_binding(k) for k in range(3)]
    pred = net.predict(image)
    assert net.give_reason(pred, 0).endswith(f". {binding.describe(int(pred.exits[0]))}")
    for other in (net.policy.shift(0.1), replace(policy, thresholds=(0.4, math.inf)).to_dict()):
        changed = net.with_policy(other)
        assert changed.policy.describe_binding(0) == ""
        assert "decides" not in changed.give_reason(changed.predict(image), 0)
    for damage in ({"share": "x"}, {"share": math.inf}, {"by_exit": [[60, 0.9]]}, {"by_exit": None}):
        with pytest.raises(er.PolicyError, match=r"expected what exitlens wrote .* Fix: "):
            net.with_policy(policy.to_dict() | {"binding": asdict(binding) | damage})


@pytest.mark.slow
def test_texts(tmp_path):
    net, policy = xl.attach(make_bert(num_hidden_layers=2), AT[:1], 3, make_texts()).eval(), xl.Policy((0.4,))
    edge, inputs = er.load(xl.export(net, policy, tmp_path / "e"), threads=1), make_texts(9)
    described = [(tensor["name"], tensor["dtype"]) for tensor in edge.manifest["inputs"]]
    assert described == [("input_ids", "int64"), ("attention_mask", "int64")]
    assert edge.manifest["modality"] == "text"
    assert edge.manifest["vocabulary"][0] > 0
    check_answers(edge.predict({name: t.numpy() for name, t in inputs.items()}), xl.predict(net, inputs, policy))
    with pytest.raises(er.InputError, match="texts"):
        edge.predict_texts(["a word"])
    with pytest.raises(er.InputError, match="tokens in"):
        edge.predict({name: t.numpy() * 10**6 for name, t in inputs.items()})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x: x.tolist(), "NumPy"),
        (lambda x: x[0], r"images\[None\]"),
        (lambda x: x[:, :1], r"expected \(B,3,16,16\)"),
        (lambda x: x[:0], "empty"),
        (lambda x: x.astype(np.float64), "float32"),
        (lambda x: np.where(x > 1, np.nan, x), "NaN"),
        (lambda x: {"x": x}, "named"),
    ],
)
def test_bad_arrays(runtime, images, spoil, message):
    with pytest.raises(er.InputError, match=message):
        runtime.predict(spoil(images.numpy()))


def test_values_that_overflow_are_named_as_the_cause(runtime, images, monkeypatch):
    monkeypatch.setattr("exitlens_runtime.network.find_probabilities", lambda x, *_: np.full_like(x, np.nan))
    with pytest.raises(er.InputError, match="huge values overflow"):
        runtime.predict(images[:2].numpy())


def test_files_are_read_as_the_library_reads_them(runtime, tmp_path):
    rng, paths = np.random.default_rng(0), []
    for i, (size, mode) in enumerate((((40, 30), "RGB"), ((16, 16), "L"), ((25, 33), "RGBA"), ((9, 9), "LA"))):
        shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], len(mode))  # noise, transparent by noise
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(rng.integers(0, 255, shape, np.uint8), mode).save(paths[-1])
    reader, library = Preprocess((16, 16), (0.5,) * 3, (0.25,) * 3), xl.data.Preprocess((16, 16))
    for path in paths:
        expected = library.normalise(xl.data.read_image(path, (16, 16), 3))
        assert np.allclose(reader.read(path), expected.numpy(), atol=1e-6)
    assert [pred.index.tolist() for pred in runtime.predict_files(paths, batch_size=2)] == [[0, 1], [2, 3]]


def test_bad_files_are_named_or_left_out(runtime, tmp_path, monkeypatch):
    (tmp_path / "x.png").write_bytes(b"no image")
    Image.new("L", (9, 9)).save(tmp_path / "small.png")
    Image.new("L", (20, 20)).save(tmp_path / "large.png")
    monkeypatch.setattr("exitlens_runtime.reading.MAX_PIXELS", 100)
    messages = {"x": "cannot be read as an image", "none": "cannot be read", "large": "at most 100 pixels"}
    for name, message in messages.items():
        with pytest.raises(er.InputError, match=message):
            list(runtime.predict_files([tmp_path / f"{name}.png"]))
    paths, failed = [tmp_path / f"{name}.png" for name in ("x", "none", "small", "large")], []
    preds = list(runtime.predict_files(paths, batch_size=2, on_error=lambda path, _: failed.append(path.stem)))
    assert [pred.index.tolist() for pred in preds] == [[2]]
    assert failed == ["x", "none", "large"]
    with pytest.raises(er.InputError, match="list of files"):
        runtime.predict_files("a.png")
