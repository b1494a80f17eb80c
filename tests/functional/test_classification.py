import math

import pytest
import torch
import torch.nn.functional as F

from exitlens.functional.classification import classification_loss, distillation_loss
from exitlens.types import ExitOutput


def test_several_labels_by_hand():
    logits, labels = torch.tensor([[0.0, math.log(3.0)]]), torch.tensor([[1, 0]])
    assert classification_loss(logits, labels).item() == pytest.approx((math.log(2) + math.log(4)) / 2)
    smooth = 0.2  # the targets become 0.9 and 0.1
    second = -(0.1 * math.log(0.75) + 0.9 * math.log(0.25))
    assert classification_loss(logits, labels, smooth).item() == pytest.approx((math.log(2) + second) / 2)
    weighted = classification_loss(logits, labels.bool(), 0.0, (1.0, 3.0)).item()
    assert weighted == pytest.approx((math.log(2) + 3 * math.log(4)) / 2)


def test_one_class_is_cross_entropy():
    logits, labels = torch.randn(6, 4), torch.arange(6) % 4
    torch.testing.assert_close(
        classification_loss(logits, labels, 0.1), F.cross_entropy(logits, labels, label_smoothing=0.1)
    )
    each = F.cross_entropy(logits, labels, reduction="none") * torch.tensor([1.0, 2.0, 3.0, 4.0])[labels]
    torch.testing.assert_close(classification_loss(logits, labels, 0.0, (1.0, 2.0, 3.0, 4.0)), each.mean())


def test_distillation_of_labels_is_the_divergence_of_yes_and_no():
    outs = [ExitOutput(torch.randn(5, 3, requires_grad=True), torch.empty(0), torch.empty(0)) for _ in range(2)]
    found = distillation_loss(outs, 2.0, several=True)
    p, q = ((out.logits / 2).sigmoid() for out in reversed(outs))
    by_hand = 4 * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()
    torch.testing.assert_close(found, by_hand)
    found.backward()
    assert outs[1].logits.grad is None
    assert distillation_loss([outs[1], outs[1]], several=True).item() == pytest.approx(0, abs=1e-6)
