import math

import pytest
import torch

import exitlens as xl

GOOD = {
    "logits": torch.randn(5, 3, 4),
    "labels": torch.tensor([0, 1, 2, 3, 0]),
    "divergence": torch.rand(5, 3),
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


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"thresholds": (math.nan,)}, "thresholds"),
        ({"thresholds": ("high",)}, "numbers"),
        ({"thresholds": 0.9}, "numbers"),
        ({"thresholds": (0.5,), "score": "x"}, "score"),
        ({"thresholds": (0.5,), "temperatures": (1.0,)}, "temperatures"),
        ({"thresholds": (0.5,), "temperatures": (1.0, 0.0)}, "temperatures"),
    ],
)
def test_bad_policies(values, message):
    with pytest.raises(xl.PolicyError, match=message):
        xl.Policy(**values)


def test_errors_share_a_base_and_name_the_extra():
    names = [getattr(xl, name) for name in xl.__all__ if name.endswith("Error")]
    assert all(issubclass(error, xl.ExitlensError) for error in names)
    assert "pip install 'exitlens[x]'" in str(xl.MissingExtraError("package", "x", "this"))
