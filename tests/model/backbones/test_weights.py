import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import exitlens as xl
from exitlens.model.backbones import weights
from exitlens.model.backbones.small import SmallResNet


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


def test_local_weights(tmp_path):
    source, target = SmallResNet(), SmallResNet()
    torch.save(source.state_dict(), tmp_path / "w.pt")
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    for name in ("w.pt", "w.safetensors"):
        xl.load_weights(target, tmp_path / name)
        assert torch.equal(target.fc.weight, source.fc.weight)
    (tmp_path / "bad.pt").write_bytes((tmp_path / "w.pt").read_bytes()[:1000])
    torch.save({"x": 3}, tmp_path / "odd.pt")
    torch.save(SmallResNet(num_classes=3).state_dict(), tmp_path / "other.pt")
    for name, message in (
        ("none.pt", "no file"),
        ("bad.pt", "cannot be read"),
        ("odd.pt", "no state dict"),
        ("other.pt", "other shapes"),
    ):
        with pytest.raises(xl.BundleError, match=message):
            xl.load_weights(target, tmp_path / name)
