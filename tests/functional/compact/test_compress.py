import pytest
import torch

import exitlens as xl
from exitlens.functional.compact.compress import compress, hash_rows
from tests.conftest import random_trace


def test_the_largest_logits_are_kept_as_they_are():
    logits = torch.randn(7, 3, 50)
    labels = torch.randint(0, 50, (7,))
    compact = compress(logits, labels)
    values, order = logits.topk(16, -1)
    assert torch.equal(compact.top, values)
    assert torch.equal(compact.classes.long(), order)
    assert torch.equal(compact.argmax(), logits.argmax(-1))
    assert torch.equal(compact.label, logits.gather(-1, labels[:, None, None].expand(7, 3, 1)).squeeze(-1))
    assert compact.shape == logits.shape


def test_of_equal_logits_the_lowest_class_answers_as_in_argmax():
    logits = torch.zeros(5, 200)
    logits[1, [9, 70, 150]] = 4
    logits[2, 30:90] = 1
    compact = compress(logits)
    assert compact.argmax().tolist() == logits.argmax(-1).tolist()
    assert len(set(compact.classes[1].tolist())) == 16


def test_the_sum_over_nodes_counts_the_other_classes():
    compact = compress(3 * torch.randn(20, 300))
    torch.testing.assert_close(compact.weights.double().sum(-1), torch.full((20,), 284.0).double(), rtol=1e-5, atol=1e-3)
    distances = compact.nodes()
    assert (distances > compact.span[:, :1] - 1e-5).all()
    assert (distances < compact.span[:, 1:] + 1e-5).all()


def test_batches_make_no_difference():
    logits = torch.randn(50, 2, 120)
    whole, parts = compress(logits), [compress(part) for part in logits.split(7)]
    for name in ("top", "classes", "span", "weights"):
        assert torch.equal(getattr(whole, name), torch.cat([getattr(part, name) for part in parts]))


def test_labels_out_of_range_are_refused():
    with pytest.raises(xl.InputError, match=r"labels: expected values in \[0, 20\)"):
        compress(torch.randn(3, 20), torch.tensor([0, 1, 20]))
    with pytest.raises(xl.InputError, match=r"labels: expected \(3,\) integers"):
        compress(torch.randn(3, 20), torch.tensor([0, 1]))


def test_hashes_are_those_of_the_whole_logits():
    trace = random_trace(10, 3, 120)
    compact = xl.Trace(
        compress(trace.logits, trace.labels),
        trace.labels,
        trace.divergence,
        trace.cost,
        sample_hashes=hash_rows(trace.logits),
    )
    assert compact.hash_samples() == trace.hash_samples()
