"""Weight of consistency and learning rate over a training."""

import pytest
import torch

from exitlens.functional.schedules import one_cycle_rate, ramp


def test_the_weight_ramps_up_linearly():
    assert ramp(0.0, 0.3) == 0
    assert ramp(0.15, 0.3) == pytest.approx(0.5)
    assert ramp(0.3, 0.3) == ramp(1.0, 0.3) == ramp(0.0, 0.0) == 1


def test_warm_up_may_be_short_or_absent():
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
