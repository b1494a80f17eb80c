from __future__ import annotations

import pytest
import torch

import exitlens as xl
from benchmarks.pictures.measure import ANSWERS, compare, list_policies, spread_by_drawing, try_policy
from exitlens.io import write_tensors


def test_pictures_of_one_drawing_count_once():
    rng = torch.Generator().manual_seed(0)
    values = torch.rand(200, 1, generator=rng)
    alone = spread_by_drawing(values, torch.arange(200))
    ten_times = spread_by_drawing(values.repeat_interleave(10, 0), torch.arange(200).repeat_interleave(10))
    assert alone.item() == pytest.approx(values.std().item() / 200**0.5, rel=0.1)
    assert ten_times.item() == pytest.approx(alone.item(), rel=1e-6)


def test_two_networks_are_compared_on_the_same_pictures(tmp_path):
    drawings = torch.tensor([0, 0, 1, 1])
    for kind, right in (("plain", [[1], [0], [1], [0]]), ("exits", [[0, 1], [0, 1], [0, 1], [1, 0]])):
        (tmp_path / f"{kind}-3").mkdir()
        write_tensors(tmp_path / f"{kind}-3" / ANSWERS, {"right": torch.tensor(right).byte(), "drawings": drawings}, {})
    found = compare(3, tmp_path)
    assert found["difference"] == 0.25  # the final exit, not the first
    assert 0.1 < found["error"] < 0.3  # drawings differ by half a point each


def test_policies_are_certified_by_drawing_and_by_picture():
    rng = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (400,), generator=rng)
    logits = torch.nn.functional.one_hot(labels, 4).float()[:, None].repeat(1, 2, 1) * 4
    logits = logits + torch.randn(logits.shape, generator=rng)
    divergence = torch.tensor([[0.1, 0.0]]).repeat(400, 1)
    trace = xl.Trace(logits, labels, divergence, torch.tensor([0.4, 1.0]), groups=torch.arange(400) // 4)
    named, unnamed = (try_policy(trace, trace, 0.1, named) for _, limit, named in list_policies() if limit == 0.05)
    assert 0 < unnamed["cost"] <= named["cost"] <= 1
    assert named["drop"] <= 0.05
