import pytest
import torch

from exitlens.workflow.training.schedule import one_cycle_rate


def test_equals_torch_one_cycle():
    steps = 1001
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps, pct_start=0.3)
    for step in range(steps - 1):
        assert one_cycle_rate(step / (steps - 1), 0.1) == pytest.approx(optimizer.param_groups[0]["lr"], rel=2e-2, abs=2e-5)
        optimizer.step()
        schedule.step()
