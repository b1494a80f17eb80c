import pytest
import torch

import exitlens as xl
from exitlens.functional.risk import accuracy_drop, disagreement, overlaps, select_exits, sketch
from tests.conftest import random_trace


def test_risks_by_hand():
    logits = torch.tensor([[[2.0, 0.0], [0.0, 2.0]], [[0.0, 2.0], [2.0, 0.0]], [[2.0, 0.0], [2.0, 0.0]]])
    trace = xl.Trace(logits, torch.tensor([1, 1, 0]), torch.zeros(3, 2), torch.tensor([0.5, 1.0]))
    assert accuracy_drop(trace)[:, 0].tolist() == [1.0, -1.0, 0.0]
    assert disagreement(trace)[:, 0].tolist() == [1.0, 1.0, 0.0]
    assert accuracy_drop(trace)[:, 1].tolist() == disagreement(trace)[:, 1].tolist() == [0.0] * 3
    assert select_exits(accuracy_drop(trace), torch.tensor([0, 1, 0])).tolist() == [1.0, 0.0, 0.0]


def test_accuracy_drop_needs_labels():
    with pytest.raises(xl.InputError, match="labels"):
        accuracy_drop(random_trace(labelled=False))


def test_shared_samples_are_found_by_the_sketch():
    one, other = random_trace(500, seed=1), random_trace(500, seed=2)
    both = xl.Trace(torch.cat([one.logits[:100], other.logits]), None, torch.zeros(600, 3), one.cost)
    record = {"data": one.fingerprint(), "sketch": sketch(one)}
    assert len(record["sketch"]) == 64
    assert overlaps(one, [record])
    assert overlaps(both, [{}, record])
    assert not overlaps(other, [record])
    assert not overlaps(other, [{}])
    assert not overlaps(other, [])
