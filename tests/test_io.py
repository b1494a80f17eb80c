import pytest
import torch
from torch import nn

import exitlens as xl
from exitlens.model import weights


def test_round_trip_with_note(tmp_path):
    tensors = {"a": torch.randn(3), "b": torch.arange(4)}
    weights.write_tensors(tmp_path / "x.safetensors", tensors, {"epoch": 3})
    back, note = weights.read_tensors(tmp_path / "x.safetensors")
    assert note == {"epoch": 3}
    assert all(torch.equal(back[name], value) for name, value in tensors.items())
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_damaged_files(tmp_path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(xl.BundleError, match="no such file"):
        weights.read_tensors(path)
    weights.write_tensors(path, {"a": torch.randn(1000)}, {})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(xl.BundleError, match="truncated"):
        weights.read_tensors(path)
    path.write_bytes(b"\x00" * 50)
    with pytest.raises(xl.BundleError, match="damaged"):
        weights.read_tensors(path)


def test_shared_tensors_are_kept_once():
    shared = nn.Linear(2, 2)
    module = nn.ModuleList([shared, shared])
    state = weights.unique_state(module)
    assert sorted(state) == ["0.bias", "0.weight"]
    weights.load_unique_state(module, {name: torch.ones_like(v) for name, v in state.items()}, "here")
    assert (module[1].weight == 1).all()


def test_what_does_not_fit_is_refused_before_anything_is_written():
    module = nn.Linear(2, 2)
    before = module.weight.clone()
    good = weights.unique_state(module)
    for state, message in (
        ({"weight": good["weight"]}, "missing"),
        (good | {"more": torch.zeros(1)}, "unexpected"),
        ({"weight": torch.zeros(2, 2), "bias": torch.zeros(3)}, r"\(3,\)"),
    ):
        with pytest.raises(xl.BundleError, match=message):
            weights.load_unique_state(module, state, "here")
    assert torch.equal(module.weight, before)


def test_checkpoint_restores_module_and_optimiser(tmp_path):
    def step(module, optimizer):
        optimizer.zero_grad()
        module(torch.ones(1, 2)).sum().backward()
        optimizer.step()

    module = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    step(module, optimizer)
    weights.save_checkpoint(tmp_path / "c", module, optimizer, {"n": 1})
    other = nn.Linear(2, 2)
    other_optimizer = torch.optim.AdamW(other.parameters(), lr=0.1)
    assert weights.load_checkpoint(tmp_path / "c", other, other_optimizer) == {"n": 1}
    step(module, optimizer)
    step(other, other_optimizer)
    assert torch.equal(module.weight, other.weight)
