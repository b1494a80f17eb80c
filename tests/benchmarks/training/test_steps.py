"""That steps with EGT and without are timed on the same network, and what they promise."""

from dataclasses import replace
from functools import partial

import torch

from benchmarks.study.data import cut_splits
from benchmarks.training.page import STEPS, list_steps
from benchmarks.training.promises import list_promises
from benchmarks.training.steps import measure
from benchmarks.truth import tasks
from exitlens.model.backbones.small import SmallResNet


def test_both_kinds_of_steps_are_timed(monkeypatch):
    monkeypatch.setattr(tasks, "DATA_OF_STUDY", {"small": partial(cut_splits, "small", most=64)})
    task = tasks.TASKS["small"](0)
    how = {**task.how, "batch_size": 8, "amp": False}
    found = measure(replace(task, how=how, build=lambda: SmallResNet(10, 3, 8, (8, 8, 8, 8))), rounds=2)
    assert (found["batch_size"], found["every"]) == (8, 1)
    low, high = (found["ratio"][i] for i in (1, 2))
    assert 0 < low <= found["ratio"][0] <= high
    assert torch.tensor([*found["seconds"]["egt"], *found["seconds"]["without"]]).gt(0).all()


def test_a_step_is_judged_by_its_ratio_and_has_its_own_table():
    found = {
        "batch_size": 64,
        "every": 2,
        "seconds": {"egt": [0.3, 0.3, 0.3], "without": [0.2, 0.2, 0.2]},
        "ratio": [1.5, 1.4, 1.6],
    }
    (promise,) = list_promises("step-vit", found)
    assert not promise.is_kept
    (row,) = list_steps({"step-vit": found, "resnet18": {}})
    assert len(row) == len(STEPS)
    assert (row[0], row[-1]) == ("vit", "1.50 (1.40 to 1.60)")
