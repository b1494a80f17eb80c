"""What trackers share, and TensorBoard; tests/ecosystem has MLflow and Weights & Biases."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch

import exitlens as xl
from exitlens.trackers import (
    MLflowTracker,
    TensorBoardTracker,
    TrainingEnd,
    TrainingStart,
    WandbTracker,
    list_parameters,
)
from exitlens.types.settings import TrainingSettings
from tests.conftest import make_net, make_unet
from tests.kinds import Convolutional
from tests.workflow.training.networks import QUICK, raise_at


@pytest.mark.parametrize(
    ("tracker", "module", "extra"),
    [
        (MLflowTracker, "mlflow", "mlflow"),
        (WandbTracker, "wandb", "wandb"),
        (TensorBoardTracker, "torch.utils.tensorboard", "log"),
    ],
)
def test_a_missing_package_is_said_before_training(monkeypatch, tracker, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(xl.errors.MissingExtraError, match=rf"{tracker.__name__} needs .*exitlens\[{extra}\]"):
        tracker()


def test_parameters_have_the_names_of_the_record():
    start = TrainingStart(make_net(), TrainingSettings(epochs=5), xl.EGTLoss(weight=0.5), None, ())
    given = list_parameters(start)
    assert given["settings.epochs"] == 5
    assert given["loss.weight"] == 0.5
    assert given["network.at"] == "a,b"


def train(tracker, data, out_dir, **options):
    net = xl.attach("small", 2, 4, torch.zeros(1, 3, 16, 16))
    return xl.fit(net, data, data, out_dir=out_dir, callbacks=[tracker], **QUICK | {"epochs": 1} | options)


@pytest.mark.slow
def test_examples_have_to_be_images_that_the_network_takes(tiny_set, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", ModuleType("mlflow"))
    series = xl.attach(Convolutional(), ["first"], 3, torch.zeros(1, 2, 16))
    start = TrainingStart(series, TrainingSettings(), xl.EGTLoss(), tmp_path, ())
    with pytest.raises(xl.errors.InputError, match="examples: maps are drawn over images, this network takes series"):
        MLflowTracker(examples=torch.zeros(1, 2, 16)).on_start(start)
    with pytest.raises(xl.errors.InputError, match=r"examples: expected \(B,3,H,W\), got \(1, 1, 16, 16\)"):
        train(MLflowTracker(examples=torch.zeros(1, 1, 16, 16)), tiny_set, tmp_path / "r")
    assert not list((tmp_path / "r").iterdir())


@pytest.mark.slow
def test_tensorboard_needs_a_directory(tiny_set):
    pytest.importorskip("tensorboard")
    with pytest.raises(xl.errors.InputError, match=r"directory: .* Fix: TensorBoardTracker\(directory=\.\.\.\)"):
        train(TensorBoardTracker(), tiny_set, None)


def read_events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder), {"images": 0, "scalars": 0}).Reload()


@pytest.mark.parametrize("task", ["segmentation", "multilabel"])
def test_examples_are_drawn_whatever_the_network_answers(tmp_path, task):
    pytest.importorskip("tensorboard")
    net = make_unet() if task == "segmentation" else make_net()
    net.describe(task=task, preprocess=xl.data.Preprocess((16, 16)))
    tracker = TensorBoardTracker(tmp_path, examples=torch.zeros(2, 3, 16, 16))
    tracker.on_start(TrainingStart(net, TrainingSettings(), xl.EGTLoss(), None, ()))
    tracker.on_end(TrainingEnd("finished", net, {"epoch": 1.0}))
    assert [each.step for each in read_events(tmp_path).Images("attention")] == [1]


@pytest.mark.slow
def test_tensorboard_has_each_epoch_once_though_the_run_was_resumed(tiny_set, tmp_path):
    pytest.importorskip("tensorboard")
    first = train(TensorBoardTracker(), tiny_set, tmp_path / "r", epochs=2)
    (tmp_path / "r" / "lost").mkdir()
    for file in (tmp_path / "r").glob("events*"):  # as if the process had ended before it wrote them
        file.rename(tmp_path / "r" / "lost" / file.name)
    tracker = TensorBoardTracker(examples=tiny_set.first(2).inputs)
    result = train(tracker, tiny_set, tmp_path / "r", epochs=3, resume=True)
    assert result.history[:2] == first.history
    events = read_events(tmp_path / "r")
    assert [(each.step, each.value) for each in events.Scalars("val_loss")] == [
        (row["epoch"], pytest.approx(row["val_loss"])) for row in result.history
    ]
    assert [each.step for each in events.Images("attention")] == [3]
    train(TensorBoardTracker(), tiny_set, tmp_path / "r", epochs=4, resume=True)
    assert [each.step for each in read_events(tmp_path / "r").Scalars("accuracy_exit0")] == [1, 2, 3, 4]


@pytest.mark.slow
def test_an_interrupted_training_leaves_its_events(tiny_set, tmp_path):
    pytest.importorskip("tensorboard")
    with pytest.raises(KeyboardInterrupt):
        train(TensorBoardTracker(tmp_path / "t"), tiny_set, None, epochs=2, augment=raise_at(KeyboardInterrupt(), 6))
    assert [each.step for each in read_events(tmp_path / "t").Scalars("val_loss")] == [1]
