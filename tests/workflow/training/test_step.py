import pytest
import torch

import exitlens as xl
from exitlens.types.settings import TrainingSettings
from exitlens.workflow.training.optimizer import make_optimizer
from exitlens.workflow.training.step import compute_gradients, use_memory_format


@pytest.mark.parametrize("target", ["attention", "product"])
def test_consistency_that_reaches_heads_leaves_the_backbone_alone(net, images, target):
    for head in net.heads:
        torch.nn.init.normal_(head.attend.weight)
    optimizer, labels = make_optimizer([{"params": list(net.parameters()), "lr": 0.1}]), torch.tensor([0, 1, 2, 3] * 10)

    def find_gradients(loss):
        compute_gradients(
            net.train(), optimizer, loss, [(images, labels)], 0.5, TrainingSettings(amp=False, channels_last=False)
        )
        return {name: p.grad.clone() for name, p in net.named_parameters()}

    without, heads, whole = (
        find_gradients(xl.EGTLoss(weight=weight, target=target, reach=reach))
        for weight, reach in ((0.0, "heads"), (1.0, "heads"), (1.0, "network"))
    )
    for name, gradient in without.items():
        same = torch.allclose(heads[name], gradient, atol=1e-7)
        assert same == (
            name.startswith("stages") or "classifier" in name or (target, name) == ("attention", "heads.2.attend.weight")
        )
    assert not torch.allclose(whole["stages.0.body.a.0.weight"], without["stages.0.body.a.0.weight"], atol=1e-7)


def test_the_memory_format_comes_back_after_an_error(net):
    def fail():
        with use_memory_format(net, channels_last=True):
            assert net.is_channels_last
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not net.is_channels_last
