"""The conditions, their losses, and how weights are chosen."""

import dataclasses
import json

import pytest
import torch

from benchmarks.study.conditions import ATTACHED, CONDITIONS, EGT, FOR, PERMUTED, choose_weight, find_missing, weigh
from benchmarks.study.runs import STUDY, study_store
from exitlens.functional.maps import divergence
from exitlens.types import ExitOutput


def test_control_losses_by_hand():
    early, final = (torch.rand(2, 2, 2).flatten(1).softmax(1).view(2, 2, 2).requires_grad_() for _ in range(2))
    outputs = [ExitOutput(torch.zeros(2, 3), attention, torch.zeros(2, 3, 2, 2)) for attention in (early, final)]
    labels = torch.tensor([0, 1])
    assert EGT(outputs, labels).consistency.item() == pytest.approx(divergence(final, early).mean().item(), rel=1e-5)
    permuted = divergence(final.roll(1, 0), early).mean().item()
    assert PERMUTED(outputs, labels).consistency.item() == pytest.approx(permuted, rel=1e-5)
    ATTACHED(outputs, labels).total.backward()
    assert final.grad is not None
    final.grad = None
    EGT(outputs, labels).total.backward()
    assert final.grad is None


def test_the_sweep_chooses_by_mean_validation_accuracy(tmp_path):
    store = study_store(tmp_path / "study.csv", tmp_path)
    for alpha, first, last in ((0.1, 0.5, 0.9), (1.0, 0.8, 0.85), (10.0, 0.6, 0.7)):
        found = {"alpha": alpha, "agreeing": {"accuracy": [first, last]}, "disagreeing": {"accuracy": [first, last]}}
        store.add(f"sweep/kl-{alpha:g}", found)
    assert choose_weight(store, "kl", (0.1, 1.0, 10.0)) == 1.0
    with pytest.raises(RuntimeError, match="the sweep of kl comes first"):
        choose_weight(store, "kl")  # half a sweep
    with pytest.raises(RuntimeError, match="the sweep of cosine comes first"):
        choose_weight(store, "cosine")


YOUNGER = {
    "label_smoothing": 0.0,
    "class_weights": None,
    "target": "attention",
    "reach": "network",
    "sharpness": None,
    "every": None,
}  # arguments of the loss that the runs did not have


def test_committed_runs_are_of_the_conditions_as_they_are_now():
    runs = STUDY.read()
    assert find_missing(STUDY) == []
    for data in FOR:
        sizes = set()
        for name in (name for name in runs if name.startswith(f"{data}/")):
            condition, found = CONDITIONS[name.removeprefix(f"{data}/").rpartition("-")[0]], runs[name]
            loss = condition.loss
            if condition.swept:
                loss = weigh(condition.swept, choose_weight(STUDY, condition.swept))
            expected = loss and {"kind": type(loss).__name__, **dataclasses.asdict(loss)}
            assert loss is None or YOUNGER | found["loss"] == json.loads(json.dumps(expected)), name
            assert loss is not None or found["loss"] is None, name
            assert found["head"] == condition.head, name
            sizes.add((found["epochs"], found["train"]))
        assert len(sizes) == 1, data
