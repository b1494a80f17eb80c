"""Callbacks of fit: what they are told, in which order, and what their errors do."""

from __future__ import annotations

import csv
from typing import ClassVar

import pytest
import torch

import exitlens as xl
from exitlens.io import read_tensors
from exitlens.workflow.training.callbacks import TrainingCallback
from tests.conftest import make_tiny_set
from tests.ranks import open_pair
from tests.workflow.training.networks import QUICK, equal, fresh, raise_at, weights

STEPS = 4  # of an epoch of the tiny set


class Listener(TrainingCallback):
    """Keeps what it is told; raises where it is asked to."""

    def __init__(self, told=None, name="", raises=""):
        self.told, self.name, self.raises = [] if told is None else told, name, raises

    def hear(self, call, value):
        self.told.append((f"{self.name}{call}", value))
        if call == self.raises:
            raise OSError(f"{call} is out of reach")

    def on_start(self, start):
        self.hear("start", start)

    def on_epoch(self, row):
        self.hear("epoch", row)

    def on_end(self, end):
        self.hear("end", end)

    def list_calls(self):
        return [call for call, _ in self.told]


def train(callbacks, data, **options):
    net = fresh()
    return net, xl.fit(net, data, data, callbacks=callbacks, **QUICK | options)


def test_each_is_told_of_the_start_the_epochs_as_in_the_log_and_the_end(tiny_set, tmp_path):
    listener = Listener()
    net, result = train([listener], tiny_set, out_dir=tmp_path / "r", keep="best", monitor="loss", learning_rate=0.1)
    assert listener.list_calls() == ["start", "epoch", "epoch", "epoch", "end"]
    start, *rows, end = (value for _, value in listener.told)
    assert (start.net, start.out_dir, start.history) == (net, tmp_path / "r", ())
    assert (start.settings.epochs, start.loss.target) == (3, "mean")  # what was left open is chosen
    lines = list(csv.DictReader((tmp_path / "r" / "log.csv").read_text().splitlines()))
    assert [{name: float(text) for name, text in line.items()} for line in lines] == rows
    assert (end.status, end.net, end.metrics) == ("finished", net, rows[result.kept_epoch - 1])


def test_weights_do_not_depend_on_callbacks(tiny_set):
    class Busy(TrainingCallback):
        def on_epoch(self, row):
            torch.manual_seed(5)

    plain, _ = train([], tiny_set, epochs=2)
    listened, _ = train([Busy()], tiny_set, epochs=2)
    assert equal(weights(plain), weights(listened))


def test_the_checkpoint_of_an_epoch_is_there_when_it_is_told(tiny_set, tmp_path):
    class Reader(TrainingCallback):
        epochs: ClassVar[list[int]] = []

        def on_epoch(self, row):
            _, note = read_tensors(tmp_path / "r" / "last.safetensors")
            self.epochs.append(len(note["history"]))

    train([Reader()], tiny_set, out_dir=tmp_path / "r", epochs=2)
    assert Reader.epochs == [1, 2]


def test_a_resumed_run_is_told_with_its_earlier_epochs(tiny_set, tmp_path):
    first, second = Listener(), Listener()
    train([first], tiny_set, out_dir=tmp_path / "r", epochs=2)
    train([second], tiny_set, out_dir=tmp_path / "r", epochs=3, resume=True)
    assert second.told[0][1].history == tuple(row for call, row in first.told if call == "epoch")
    assert [value["epoch"] for call, value in second.told if call == "epoch"] == [3]


def test_an_error_in_a_callback_ends_training_after_a_checkpoint_and_all_are_told(tiny_set, tmp_path):
    broken, other = Listener(raises="epoch"), Listener()
    with pytest.raises(OSError, match="epoch is out of reach"):
        train([other, broken], tiny_set, out_dir=tmp_path / "r")
    assert other.list_calls() == broken.list_calls() == ["start", "epoch", "end"]
    assert (other.told[-1][1].status, other.told[-1][1].metrics) == ("failed", other.told[1][1])
    again = Listener()
    train([again], tiny_set, out_dir=tmp_path / "r", resume=True)
    assert [value["epoch"] for call, value in again.told if call == "epoch"] == [2, 3]


def test_who_did_not_start_is_not_told_of_the_end_and_the_directory_can_be_used_again(tiny_set, tmp_path):
    before, broken, after = Listener(), Listener(raises="start"), Listener()
    with pytest.raises(OSError, match="start is out of reach"):
        train([before, broken, after], tiny_set, out_dir=tmp_path / "r")
    assert [each.list_calls() for each in (before, broken, after)] == [["start", "end"], ["start"], []]
    assert before.told[-1][1].metrics == {}
    train([after], tiny_set, out_dir=tmp_path / "r", epochs=1)


def test_all_ends_are_told_in_order_and_errors_there_are_raised_or_noted(tiny_set):
    told = []
    calls = [Listener(told, name, raises="end") for name in ("a ", "b ")]
    with pytest.raises(OSError, match="end is out of reach"):
        train(calls, tiny_set, epochs=1)
    assert [call for call, _ in told] == ["a start", "b start", "a epoch", "b epoch", "a end", "b end"]
    with pytest.raises(ZeroDivisionError) as caught:
        train(calls, tiny_set, augment=raise_at(ZeroDivisionError("hard luck"), 2))
    assert caught.value.__notes__ == ["callbacks: on_end raised OSError: end is out of reach"]


def test_an_interrupted_training_is_told_as_such(tiny_set):
    listener = Listener()
    with pytest.raises(KeyboardInterrupt):
        train([listener], tiny_set, augment=raise_at(KeyboardInterrupt(), STEPS + 2))
    assert listener.list_calls() == ["start", "epoch", "end"]
    assert listener.told[-1][1].status == "interrupted"


def test_what_on_end_raises_after_ctrl_c_comes_after_how_to_go_on(tiny_set, tmp_path):
    with pytest.raises(KeyboardInterrupt) as caught:
        train([Listener(raises="end")], tiny_set, out_dir=tmp_path / "r", augment=raise_at(KeyboardInterrupt(), STEPS + 2))
    assert caught.value.__notes__ == [
        "after epoch 1 of 3",
        f"resume=True (--resume) goes on in {tmp_path / 'r'}",
        "callbacks: on_end raised OSError: end is out of reach",
    ]


def test_a_guide_is_not_told(tiny_set):
    listener = Listener()
    train([listener], tiny_set, rely_on="map", epochs=1)
    assert listener.list_calls() == ["start", "epoch", "end"]


def test_an_object_of_the_right_methods_need_not_derive(tiny_set):
    class Plain:
        on_start = on_end = on_epoch = staticmethod(lambda told: None)

    train([Plain()], tiny_set, epochs=1)


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        (Listener(), "callbacks: expected Sequence, got Listener: put it in a list"),
        ([Listener], r"callbacks\[0\]: .* got <class .*Listener.*. Fix: .* pass an object"),
        ([print], r"callbacks\[0\]: expected an object with on_start, on_epoch and on_end, got <built-in function print>"),
    ],
)
def test_others_are_refused(tiny_set, callbacks, message):
    with pytest.raises(xl.errors.InputError, match=message):
        train(callbacks, tiny_set)


@pytest.mark.slow
def test_the_first_of_two_processes_calls_and_its_error_is_that_of_both(tmp_path):
    with open_pair(tmp_path) as pair:
        first, second = pair.run(_listen, "")
        assert first == ["start", "epoch", "end"]
        assert second == []
        first, second = pair.run(_listen, "epoch")
        assert isinstance(first, OSError)
        assert isinstance(second, xl.errors.DistributedError)
        assert "epoch is out of reach" in str(second)


def _listen(rank, raises):
    listener = Listener(raises=raises)
    train([listener], make_tiny_set(), epochs=1)
    return listener.list_calls()
