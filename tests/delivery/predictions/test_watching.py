"""Samples are watched by their groups, whatever the batches."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import exitlens as xl
from exitlens.delivery.predictions.watching import start_watch, watch_files
from tests.conftest import random_trace


@pytest.fixture
def policy():
    return xl.calibrate(random_trace(200), max_accuracy_drop=0.05)


def predict_files(count: int, size: int):
    p = torch.rand(count, 4, generator=torch.Generator().manual_seed(0)).softmax(1)
    parts = p.split(size)
    preds = [xl.Prediction(one.argmax(1), torch.zeros(len(one)).long(), one.amax(1), one) for one in parts]
    return preds, SimpleNamespace(groups=[f"v{i // 4}" for i in range(count)])


@pytest.mark.filterwarnings("ignore::exitlens.DriftWarning")
@pytest.mark.parametrize("size", [3, 8, 20])
def test_the_first_sample_of_each_group_counts(policy, size):
    preds, samples = predict_files(20, size)
    counted = replace(policy, calibration=replace(policy.calibration, groups=200))
    watch = start_watch(counted, True, "video")
    assert list(watch_files(watch, preds, samples)) == preds
    assert (watch.state().samples, watch.state().groups) == (20, 5)
    alone = start_watch(policy, True, "")
    list(watch_files(alone, preds, SimpleNamespace(groups=None)))
    assert alone.state().groups is None
    assert start_watch(counted, False, "") is None
    assert list(watch_files(None, preds, samples)) == preds


def test_a_calibration_that_counted_groups_needs_them(policy):
    counted = replace(policy, calibration=replace(policy.calibration, groups=200))
    with pytest.raises(xl.InputError, match="monitor: the calibration counted groups: say by --group-by"):
        start_watch(counted, True, "")
