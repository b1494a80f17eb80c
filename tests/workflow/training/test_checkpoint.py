import torch
from torch import nn

from exitlens.workflow.training import checkpoint


def test_checkpoint_restores_module_and_optimiser(tmp_path):
    def step(module, optimizer):
        optimizer.zero_grad()
        module(torch.ones(1, 2)).sum().backward()
        optimizer.step()

    module = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    step(module, optimizer)
    checkpoint.save_checkpoint(tmp_path / "c", module, optimizer, {"n": 1})
    other = nn.Linear(2, 2)
    other_optimizer = torch.optim.AdamW(other.parameters(), lr=0.1)
    assert checkpoint.load_checkpoint(tmp_path / "c", other, other_optimizer) == {"n": 1}
    step(module, optimizer)
    step(other, other_optimizer)
    assert torch.equal(module.weight, other.weight)
