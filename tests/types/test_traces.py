import math

import pytest
import torch

import exitlens as xl
from tests.conftest import random_trace

GOOD = {
    "logits": torch.randn(5, 3, 4),
    "labels": torch.tensor([0, 1, 2, 3, 0]),
    "divergence": torch.rand(5, 3) * torch.tensor([1.0, 1.0, 0.0]),
    "cost": torch.tensor([0.2, 0.5, 1.0]),
}


def test_a_trace_by_hand_takes_lists_and_makes_its_tensors():
    trace = xl.Trace([[[0.0, 1.0], [1.0, 0.0]]], [1], [[0.1, 0.0]], [0.5, 1.0])
    assert len(trace) == 1
    assert trace.num_exits == 2
    assert trace.labels.dtype == torch.int64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logits": torch.randn(5, 3)}, r"logits: expected \(N,K,C\)"),
        ({"logits": torch.randn(0, 3, 4)}, "logits"),
        ({"logits": torch.full((5, 3, 4), math.nan)}, "finite"),
        ({"labels": torch.tensor([0, 1, 2, 3, 9])}, r"\[0, 4\)"),
        ({"labels": torch.tensor([0, 1, 2, 3, -1])}, r"\[0, 4\)"),
        ({"labels": torch.rand(5)}, "integers"),
        ({"labels": torch.tensor([0])}, "integers"),
        ({"divergence": torch.rand(5, 2)}, "divergence"),
        ({"divergence": torch.full((5, 3), 1.5)}, r"\[0, 1\]"),
        ({"divergence": torch.full((5, 3), 0.5)}, "0 at the final exit"),
        ({"labels": ["a"] * 5}, "labels"),
        ({"gate_features": "x"}, "gate_features"),
        ({"groups": torch.zeros(4).long()}, r"groups: expected \(5,\) integers"),
        ({"groups": torch.zeros(5)}, "groups: expected .* integers"),
        ({"groups": ["a"] * 5}, "groups: expected .* integers"),
        ({"logits": torch.zeros(5, 3, 1)}, "two classes or more"),
        ({"cost": torch.tensor([0.5, 0.2, 1.0])}, "increasing"),
        ({"cost": torch.tensor([0.0, 0.2, 1.0])}, "positive"),
        ({"cost": torch.tensor([0.2, 1.0])}, "cost"),
    ],
)
def test_bad_traces(changes, message):
    with pytest.raises(xl.InputError, match=message):
        xl.Trace(**{**GOOD, **changes})


def test_a_fingerprint_names_the_samples():
    first = xl.Trace(**GOOD)
    assert first.fingerprint() == xl.Trace(**GOOD).fingerprint()
    assert first.fingerprint() != xl.Trace(**{**GOOD, "labels": None}).fingerprint()


def test_equal_samples_have_equal_hashes():
    trace = random_trace(20)
    twice = xl.Trace(trace.logits.repeat(2, 1, 1), None, trace.divergence.repeat(2, 1), trace.cost)
    hashes = twice.hash_samples()
    assert hashes[:20] == hashes[20:] == trace.hash_samples()
    assert len(set(hashes)) == 20


@pytest.mark.parametrize("name", ["logits", "divergence", "cost"])
def test_what_a_trace_cannot_be_without(name):
    good = {"logits": torch.zeros(2, 2, 2), "labels": None, "divergence": torch.zeros(2, 2), "cost": torch.tensor([0.5, 1])}
    xl.Trace(**good)
    with pytest.raises(xl.InputError, match=f"{name}: expected"):
        xl.Trace(**good | {name: None})


def test_samples_with_one_id_are_one_group():
    trace = xl.Trace(**GOOD, groups=[7, 7, -1, 3, 7])
    assert trace.groups.tolist() == [7, 7, -1, 3, 7]
    assert trace.num_groups == 3
    assert repr(trace) == "Trace(5 labelled samples in 3 groups, 3 exits, 4 classes)"
    assert xl.Trace(**GOOD).num_groups == 5
    assert trace.fingerprint() == xl.Trace(**GOOD).fingerprint()
