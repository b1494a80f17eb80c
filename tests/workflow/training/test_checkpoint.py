import torch
from torch import nn

from exitlens.workflow.training import checkpoint


def make_conv():
    module = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    return module, torch.optim.AdamW(module.parameters(), lr=0.1, fused=True)


def test_checkpoint_restores_module_and_optimiser(tmp_path):
    """Also the moments' memory format, which PyTorch's fused kernel relies on and does not check."""

    def step(module, optimizer):
        optimizer.zero_grad()
        module(torch.arange(75.0).view(1, 3, 5, 5)).square().sum().backward()
        optimizer.step()

    module, optimizer = make_conv()
    step(module, optimizer)
    checkpoint.save_checkpoint(tmp_path / "c", module, optimizer, {"n": 1})
    other, other_optimizer = make_conv()
    assert checkpoint.load_checkpoint(tmp_path / "c", other, other_optimizer) == {"n": 1}
    step(module, optimizer)
    step(other, other_optimizer)
    assert torch.equal(module.weight, other.weight)
