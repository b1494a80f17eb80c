import pytest
import torch

import exitlens as xl
from exitlens.workflow.training.parameters import make_optimizer
from exitlens.workflow.training.step import (
    TrainingSettings,
    compute_gradients,
    one_cycle_rate,
    select_trainable,
    use_memory_format,
)

GOOD = {"epochs": 1, "batch_size": 8, "learning_rate": 1e-3, "weight_decay": 0.0, "seed": 0, "amp": False}
GOOD |= {"channels_last": False, "freeze_backbone": False}


def test_settings_name_what_does_not_fit():
    TrainingSettings(**GOOD)
    for name, value in (("epochs", 0), ("batch_size", 1.5), ("seed", -1), ("learning_rate", 0.0), ("weight_decay", -1.0)):
        with pytest.raises(xl.InputError, match=name):
            TrainingSettings(**GOOD | {name: value})


@pytest.mark.parametrize("target", ["attention", "product"])
def test_consistency_that_reaches_heads_leaves_the_backbone_alone(net, images, target):
    for head in net.heads:
        torch.nn.init.normal_(head.attend.weight)
    optimizer, labels = make_optimizer([{"params": list(net.parameters()), "lr": 0.1}]), torch.tensor([0, 1, 2, 3] * 10)

    def find_gradients(loss):
        compute_gradients(net.train(), optimizer, loss, [(images, labels)], 0.5, TrainingSettings(**GOOD))
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


def test_a_frozen_backbone_leaves_the_heads_to_train(net):
    heads = {id(p) for p in net.heads.parameters()}
    assert {id(p) for p in select_trainable(net, freeze_backbone=True)} == heads
    assert len(select_trainable(net, freeze_backbone=False)) == len(list(net.parameters()))


def test_the_memory_format_comes_back_after_an_error(net):
    def fail():
        with use_memory_format(net, channels_last=True):
            assert net.is_channels_last
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not net.is_channels_last


def test_the_warm_up_may_be_short_or_none():
    assert one_cycle_rate(0.1, 1.0, 0.1) == 1.0
    assert one_cycle_rate(0.0, 1.0, 0.0) == 1.0
    assert one_cycle_rate(0.05, 1.0, 0.1) == pytest.approx(0.52)


def test_equals_torch_one_cycle():
    steps = 1001
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps, pct_start=0.3)
    for step in range(steps - 1):
        assert one_cycle_rate(step / (steps - 1), 0.1) == pytest.approx(optimizer.param_groups[0]["lr"], rel=2e-2, abs=2e-5)
        optimizer.step()
        schedule.step()
