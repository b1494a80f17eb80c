"""Every verb on a set that is read while it is asked for."""

import os
import shutil
import signal

import pytest
import torch

import exitlens as xl
from exitlens.data.readers import ImageFiles
from exitlens.delivery.run_directory import build_network
from exitlens.model.backbones.weights import unique_state
from exitlens.types.settings import NetworkSettings
from tests.conftest import TinyNet

PREPROCESS = xl.data.Preprocess((16, 16))
FIT = {"epochs": 2, "batch_size": 8, "progress": False, "amp": False}


@pytest.fixture
def own(folder, tmp_path):
    """A copy of the folder, to be spoilt."""
    return shutil.copytree(folder, tmp_path / "own")


def _spoil(own, *numbers):
    for i in numbers:
        (own / "dark" / f"{i:02}.png").write_text("no image")


def _open(folder, workers=0, skip_bad=False):
    data = xl.data.load_folder(folder, PREPROCESS, skip_bad=skip_bad)
    data.workers = workers
    return xl.data.split_set(data, (0.7, 0.3))


def _attach():
    torch.manual_seed(0)
    return xl.attach(TinyNet(classes=2), ["a", "b"], 2, torch.zeros(1, 3, 16, 16))


def _train(train, val, **options):
    net = _attach()
    result = xl.fit(net, train, val, **FIT | options)
    return unique_state(net), result.history


def _equal(first, second):
    return all(torch.equal(a, b) for a, b in zip(first.values(), second.values(), strict=True))


@pytest.mark.slow
def test_lazy_sets_train_the_weights_of_sets_in_memory(folder):
    train, val = _open(folder)
    expected, history = _train(train.load(), val.load())
    for workers in (0, 3):
        outcome, same = _train(*_open(folder, workers))
        assert _equal(outcome, expected)
        assert [row["accuracy"] for row in same] == [row["accuracy"] for row in history]
    assert _equal(_train(*_open(folder), workers=2)[0], expected)


@pytest.mark.slow
def test_bad_files_stop_a_fit_which_resumes_without_them(own, tmp_path):
    _spoil(own, 3, 4, 5)
    with pytest.raises(xl.errors.DataError, match=r"dark/0[345]\.png.*--skip-bad") as caught:
        _train(*_open(own, 2), out_dir=tmp_path / "run")
    assert caught.value.is_skippable
    assert "--resume" not in str(caught.value)  # there is no run yet
    train, val = _open(own, 2, skip_bad=True)
    outcome, history = _train(train, val, out_dir=tmp_path / "run", resume=True)
    assert len(train.bad) == 3
    assert len(history) == 2
    assert _equal(outcome, _train(*_open(own, 0, skip_bad=True))[0])


def test_batches_that_become_too_small_are_skipped(own):
    _spoil(own, *range(30))
    train, val = _open(own, skip_bad=True)
    _train(train, val)
    trace = xl.collect(_attach().eval(), train)
    assert len(trace) == int((train.labels == train.classes.index("bright")).sum())


@pytest.mark.slow
def test_a_fit_resumes_after_a_killed_worker(folder, tmp_path, monkeypatch):
    expected, _ = _train(*_open(folder))
    original, here, train = ImageFiles.read, os.getpid(), _open(folder, 2)[0]
    victim = int(train.rows[5])

    def read(self, index):
        if index == victim and os.getpid() != here and (tmp_path / "run" / "last.safetensors").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, index)

    monkeypatch.setattr(ImageFiles, "read", read)
    with pytest.raises(xl.errors.DataError, match=r"SIGKILL.*--resume"):
        _train(*_open(folder, 2), out_dir=tmp_path / "run")
    monkeypatch.undo()
    outcome, history = _train(*_open(folder, 2), out_dir=tmp_path / "run", resume=True)
    assert len(history) == 2
    assert _equal(outcome, expected)


@pytest.mark.slow
def test_the_other_verbs_give_what_they_give_in_memory(folder):
    lazy, whole = _open(folder, 2)[0], _open(folder)[0].load()
    net = _attach().eval()
    first, second = xl.collect(net, lazy, batch_size=8), xl.collect(net, whole, batch_size=8)
    assert torch.equal(first.logits, second.logits)
    assert torch.equal(first.labels, second.labels)
    assert xl.measure_faithfulness(net, lazy, samples=20) == xl.measure_faithfulness(net, whole, samples=20)
    policy = xl.Policy((0.6, 0.6))
    predictions = [torch.cat([p.labels for p in xl.predict_stream(net, data, policy)]) for data in (lazy, whole)]
    assert torch.equal(*predictions)


@pytest.mark.slow
def test_networks_are_built_on_the_first_readable_image(own):
    _spoil(own, 0, 1)
    data = xl.data.load_folder(own, PREPROCESS, skip_bad=True)
    dark = data.subset((data.labels == data.classes.index("dark")).nonzero().flatten())
    assert build_network(NetworkSettings(), dark).num_exits == 4
    with pytest.raises(xl.errors.DataError, match=r"00\.png"):
        build_network(NetworkSettings(), xl.data.load_folder(own, PREPROCESS).subset(dark.rows))
