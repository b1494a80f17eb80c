"""Tasks that need no files of others, cut short."""

from dataclasses import replace
from functools import partial

import pytest
import torch

import exitlens as xl
from benchmarks.truth import jobs, measure
from benchmarks.truth.conditions import LOSSES, TITLES, PermutedLoss
from benchmarks.truth.tasks import SEEDS, TASKS, Task, build_network, build_vit
from exitlens.model.backbones.small import SmallResNet


def _make_task(tiny_set):
    how = {"epochs": 1, "batch_size": 16}
    return Task(tiny_set, tiny_set, {"test": tiny_set}, partial(SmallResNet, 4), ("layer1", "layer3"), how, grid=(4, 4))


def test_names():
    assert set(SEEDS) == set(TASKS)
    assert set(LOSSES) == set(TITLES)
    runs = list(jobs.list_runs())
    assert len(set(runs)) == len(runs)
    assert [seed for task, condition, seed in runs if (task, condition) == ("scenes", "egt")] == [0, 1, 2, 3, 4]
    assert [seed for task, condition, seed in runs if (task, condition) == ("scenes", "permuted")] == [0, 1, 2]


@pytest.mark.parametrize("condition", ["plain", "egt", "permuted"])
def test_a_run_says_how_good_true_and_alike(tiny_set, condition, tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "SAMPLES", 8)
    monkeypatch.setattr(measure, "ORACLE", 4)
    found = measure.run(_make_task(tiny_set), condition, 0, tmp_path)
    assert len(found["tests"]["test"]["accuracy"]) == len(found["cost"]) == (1 if condition == "plain" else 3)
    if condition != "plain":
        assert len(found["skill"]) == 2
        assert len(found["attention"]["deletion_share"]) == len(found["relevance"]["deletion"]) == 3


def test_all_networks_of_a_seed_start_alike(tiny_set):
    task = _make_task(tiny_set)
    one, other = (build_network(task, 0, exits=True) for _ in range(2))
    assert one.fingerprint() == other.fingerprint()
    assert build_network(replace(task, at=1), 1, exits=True).fingerprint() != one.fingerprint()


def test_the_control_takes_targets_of_other_samples():
    maps = [torch.rand(3, 4, 4) for _ in range(2)]
    (target,) = PermutedLoss().make_targets(maps, None)
    assert torch.equal(target, maps[-1].roll(1, 0))
    assert isinstance(PermutedLoss().for_network(True), PermutedLoss)
    assert xl.EGTLoss().for_network(True).target == "product"


def test_the_vision_transformer_has_cells_of_five_pixels():
    torch.manual_seed(0)  # random kernels may lean
    net = xl.attach(build_vit(), ("blocks.0", "blocks.2", "blocks.4"), 10, torch.zeros(1, 3, 40, 40), head="context")
    assert net.has_attention
    assert [tuple(out.attention.shape[1:]) for out in net(torch.zeros(1, 3, 40, 40))] == [(8, 8)] * 4
    assert set(net.map_offsets) == {(0.0, 0.0)}
