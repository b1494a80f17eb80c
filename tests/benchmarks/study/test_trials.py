"""What the trials change, by hand."""

import torch

from benchmarks.study.conditions import EGT
from benchmarks.study.trials import MixedLoss, average_so_far, balance
from exitlens.types import ExitOutput


def test_balanced_gradients_reach_the_first_stage_in_equal_shares(net, images):
    labels = torch.arange(40) % 4

    def gradient(k):
        net.zero_grad()
        torch.nn.functional.cross_entropy(net(images)[k].logits, labels).backward()
        return next(net.stage(0).parameters()).grad.clone()

    before, logits = [gradient(k) for k in range(3)], net(images)[-1].logits
    balance(net)
    assert torch.equal(net(images)[-1].logits, logits)
    for k in range(3):
        torch.testing.assert_close(gradient(k), before[k] / 3, rtol=1e-4, atol=1e-8)


def test_mixed_training_begins_with_the_backbone_alone():
    logits = [torch.randn(2, 3, requires_grad=True) for _ in range(2)]
    outputs = [ExitOutput(z, torch.full((2, 2, 2), 0.25), torch.zeros(2, 3, 2, 2)) for z in logits]
    labels = torch.tensor([0, 1])
    MixedLoss()(outputs, labels, 0.4).total.backward()
    assert not logits[0].grad.any()
    assert logits[1].grad.any()
    late, whole = MixedLoss()(outputs, labels, 0.75), EGT(outputs, labels, 0.5)
    assert late.total.item() == whole.total.item()


def test_averaged_exits_by_hand():
    sure, unsure = torch.tensor([0.0, 5.0]), torch.tensor([0.5, 0.0])
    logits = torch.stack([torch.stack([sure, unsure]), torch.stack([unsure, sure])])  # two samples of two exits
    assert average_so_far(logits, torch.tensor([1, 1])) == [0.5, 1.0]
