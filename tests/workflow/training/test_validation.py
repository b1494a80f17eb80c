import pytest
import torch
import torch.nn.functional as F

import exitlens as xl
from exitlens.workflow.training.validation import validate


def test_means_over_samples_whatever_the_batches(net, tiny_set):
    loss = xl.EGTLoss(exit_weights=(1.0, 1.0, 1.0))
    whole = validate(net, tiny_set, loss, 64)
    parts = validate(
        net, [(tiny_set.inputs[:20], tiny_set.labels[:20]), (tiny_set.inputs[20:], tiny_set.labels[20:])], loss, 1
    )
    with torch.no_grad():
        outs = net.eval()(tiny_set.inputs)
    assert whole.accuracy == [(out.logits.argmax(1) == tiny_set.labels).float().mean().item() for out in outs]
    expected = sum(F.cross_entropy(out.logits, tiny_set.labels).item() for out in outs) / 3
    assert whole.loss == pytest.approx(expected, rel=1e-5)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-5)
    assert parts.accuracy == pytest.approx(whole.accuracy)
    assert parts.cc == pytest.approx(whole.cc, rel=1e-5)
