import pytest
import torch
from torch import nn

import exitlens as xl
from exitlens.model.backbones import weights


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
