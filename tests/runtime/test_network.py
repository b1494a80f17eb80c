"""Answers, exits, gates and maps are those of ``exitlens.predict``; arrays that do not fit are refused."""

import math

import numpy as np
import pytest

import exitlens as xl
import exitlens_runtime as er
from tests.runtime.conftest import NET
from tests.texts import make_text_net, make_texts


@pytest.mark.parametrize("batch", [1, 3, 40])
@pytest.mark.parametrize("limits", [(0.8, 0.7), (0.0, 0.0), (math.inf, 0.5), (math.inf, math.inf)])
def test_answers_are_those_of_predict(runtime, images, batch, limits):
    policy = xl.Policy(limits)
    expected = xl.predict(NET, images[:batch], policy, attention=True)
    found = runtime.with_policy(policy.to_dict()).predict(images[:batch].numpy(), attention=True)
    assert found.labels.tolist() == expected.labels.tolist()
    assert found.exits.tolist() == expected.exits.tolist()
    assert np.allclose(found.confidence, expected.confidence.numpy(), atol=1e-5)
    assert np.allclose(found.probabilities, expected.probabilities.numpy(), atol=1e-5)
    assert all(np.allclose(a, b.numpy(), atol=1e-5) for a, b in zip(found.attention, expected.attention, strict=True))
    assert found.index.tolist() == list(range(batch))


@pytest.mark.parametrize("limits", [(0.6, 0.5), (0.6, math.inf), (math.inf, 0.5), (0.0, 0.0)])
def test_a_gate_decides_as_in_the_library(images, tmp_path, limits):
    policy = xl.Policy(limits, gate=xl.Gate(((-0.3, 0.5, 0.4, 0.2), (0.1, 0.2, 0.9, 0.0)), (0.5, 0.3)))
    found = er.load(xl.export(NET, policy, tmp_path / "e"), threads=1).predict(images.numpy())
    expected = xl.predict(NET, images, policy)
    assert found.exits.tolist() == expected.exits.tolist()
    for ours, theirs in (
        (found.confidence, expected.confidence),
        (found.divergence_estimate, expected.divergence_estimate),
        (found.last_divergence, expected.last_divergence),
    ):
        assert np.allclose(ours, theirs.numpy(), atol=1e-5, equal_nan=True)


@pytest.mark.slow
def test_texts(tmp_path):
    net = make_text_net()
    policy = xl.Policy((0.4,) * (net.num_exits - 1))
    found = er.load(xl.export(net, policy, tmp_path / "e"), threads=1)
    inputs = make_texts(9)
    expected, answers = xl.predict(net, inputs, policy), found.predict({name: t.numpy() for name, t in inputs.items()})
    assert answers.labels.tolist() == expected.labels.tolist()
    assert answers.exits.tolist() == expected.exits.tolist()
    with pytest.raises(er.InputError, match="texts"):
        found.predict_texts(["a word"])
    with pytest.raises(er.InputError, match="tokens in"):
        found.predict({name: t.numpy() * 10**6 for name, t in inputs.items()})


def test_a_policy_is_exchanged_by_another_network(runtime):
    with pytest.raises(AttributeError):
        runtime.policy = runtime.policy


def test_bad_arrays(runtime, images):
    good = images.numpy()
    for value, words in (
        (images, "NumPy"),
        (good[0], r"images\[None\]"),
        (good[:, :1], r"expected \(B,3,16,16\)"),
        (good[:0], "empty"),
        (good.astype(np.float64), "float32"),
        (np.where(good > 1, np.nan, good), "NaN"),
        ({"x": good}, "named"),
    ):
        with pytest.raises(er.InputError, match=words):
            runtime.predict(value)


def test_values_that_overflow_are_named_as_the_cause(runtime, images, monkeypatch):
    monkeypatch.setattr("exitlens_runtime.network.find_probabilities", lambda x, *_: np.full_like(x, np.nan))
    with pytest.raises(er.InputError, match="huge values overflow"):
        runtime.predict(images[:2].numpy())
