"""What fit can do besides the plain loop, and that a run with all of it resumes to the bit."""

import json
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import v2

import exitlens as xl
from exitlens.io import read_tensors
from tests.conftest import TinyNet, make_net
from tests.ranks import end, fork

QUICK = {"epochs": 3, "batch_size": 8, "progress": False, "amp": False}
EVERYTHING = {"augment": "trivial", "balanced": True, "accumulate": 2, "clip_norm": 0.5, "ema": 0.9, "monitor": "loss"}
LOSS = xl.EGTLoss(label_smoothing=0.1, class_weights="balanced")


def _fresh(backbone: nn.Module | None = None) -> xl.ExitNet:
    torch.manual_seed(7)
    return xl.attach(backbone or TinyNet(), ["a", "b"], 4, torch.zeros(1, 3, 16, 16))


def _weights(net: xl.ExitNet) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def _equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


class SmoothNet(nn.Module):
    """Without batch normalisation: gradients of parts of a batch add up."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU())
        self.b = nn.Sequential(nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU())
        self.fc = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.b(self.a(x)).mean((2, 3)))


def _smooth() -> xl.ExitNet:
    torch.manual_seed(7)
    return xl.attach(SmoothNet(), ["a"], 4, torch.zeros(1, 3, 16, 16), head="evidence")


@pytest.mark.parametrize("class_weights", [None, (1.0, 2.0, 3.0, 4.0)])
def test_accumulated_batches_are_one_large_batch(tiny_set, class_weights):
    loss = xl.EGTLoss(class_weights=class_weights)
    nets = [_smooth(), _smooth()]
    for net, values in zip(nets, ({"batch_size": 16}, {"batch_size": 4, "accumulate": 4}), strict=True):
        xl.fit(net, tiny_set, tiny_set, loss=loss, **QUICK | values)
    for a, b in zip(*(net.parameters() for net in nets), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_uneven_batches_of_one_step_weigh_as_their_samples(tiny_set):
    halves = [(tiny_set.inputs[:24], tiny_set.labels[:24]), (tiny_set.inputs[24:], tiny_set.labels[24:])]
    nets = [_smooth(), _smooth()]
    xl.fit(nets[0], DataLoader(halves, batch_size=None), tiny_set, accumulate=2, **QUICK)
    xl.fit(nets[1], DataLoader(tiny_set, 32), tiny_set, **QUICK)
    for a, b in zip(*(net.parameters() for net in nets), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_the_last_step_of_an_epoch_takes_the_batches_that_are_left(tiny_set):
    result = xl.fit(_fresh(), tiny_set, tiny_set, accumulate=3, **QUICK)  # 4 batches: 3 and 1
    assert len(result.history) == 3
    assert 0 < result.history[0]["loss"]["total"] < 3


def test_the_gradient_is_clipped(tiny_set, monkeypatch):
    norms = []
    original = torch.optim.AdamW.step

    def step(self, *args):
        norms.append(sum(float(p.grad.square().sum()) for g in self.param_groups for p in g["params"] if p.grad is not None))
        return original(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    xl.fit(_fresh(), tiny_set, tiny_set, clip_norm=0.01, **QUICK)
    assert len(norms) == 12
    assert max(norms) <= 0.0101**2


def test_the_average_of_the_weights_is_validated_saved_and_kept(tiny_set, tmp_path):
    net = _fresh()
    result = xl.fit(net, tiny_set, tiny_set, ema=0.9, out_dir=tmp_path / "r", **QUICK)
    stored, _ = read_tensors(tmp_path / "r" / "last.safetensors")
    mine = net.state_dict()
    averages = {name.removeprefix("ema."): value for name, value in stored.items() if name.startswith("ema.")}
    assert all(torch.equal(value, mine[name]) for name, value in averages.items() if name != "steps")
    assert not all(torch.equal(value, stored[f"net.{name}"]) for name, value in averages.items() if name != "steps")
    trace = xl.collect(net, tiny_set)
    accuracy = (trace.logits.argmax(2) == tiny_set.labels[:, None]).float().mean(0)
    assert accuracy.tolist() == result.history[-1]["accuracy"]
    plain = _fresh()
    xl.fit(plain, tiny_set, tiny_set, **QUICK)
    raw = {name.removeprefix("net."): value for name, value in stored.items() if name.startswith("net.")}
    assert _equal(raw, plain.state_dict())  # averaging does not change how it trains


def test_the_best_average_is_kept(tiny_set, tmp_path):
    net = _fresh()
    result = xl.fit(net, tiny_set, tiny_set, ema=0.5, keep="best", out_dir=tmp_path / "r", **QUICK | {"epochs": 6})
    best, note = read_tensors(tmp_path / "r" / "best.safetensors")
    assert note["epoch"] == result.best_epoch == result.kept_epoch
    assert _equal(best, net.state_dict())


def test_training_stops_early_with_the_best_weights_and_stays_stopped(tiny_set, tmp_path):
    how = QUICK | {"epochs": 40, "learning_rate": 1e-7, "out_dir": tmp_path / "r"}
    net = _fresh()
    result = xl.fit(net, tiny_set, tiny_set, patience=2, **how)
    assert len(result.history) < 40
    assert len(result.history) == result.best_epoch + 2
    assert result.kept_epoch == result.best_epoch
    assert _equal(read_tensors(tmp_path / "r" / "best.safetensors")[0], net.state_dict())
    again = make_net()
    resumed = xl.fit(again, tiny_set, tiny_set, patience=2, resume=True, **how)
    assert resumed.history == result.history
    assert _equal(_weights(net), _weights(again))


def test_it_says_that_it_stopped(tiny_set, capsys):
    xl.fit(_fresh(), tiny_set, tiny_set, patience=1, **QUICK | {"epochs": 9, "learning_rate": 1e-7, "progress": True})
    assert "stopped: no better accuracy" in capsys.readouterr().out


@pytest.mark.parametrize("augment", ["flip", "crop", "trivial", v2.RandomVerticalFlip()])
def test_augmented_training(tiny_set, augment):
    runs = []
    for seed in (0, 0, 1):
        net = _fresh()
        torch.randn(3)
        xl.fit(net, tiny_set, tiny_set, augment=augment, seed=seed, **QUICK | {"epochs": 1})
        runs.append(_weights(net))
    assert _equal(runs[0], runs[1])
    assert not _equal(runs[0], runs[2])


def test_balanced_class_weights_are_recorded_as_numbers(tiny_set, tmp_path):
    few = tiny_set.subset(torch.tensor([0, 1, 2, 3, 4, 8]))  # class 0 three times
    xl.fit(_fresh(), few, tiny_set, loss=xl.EGTLoss(class_weights="balanced"), out_dir=tmp_path / "r", **QUICK)
    record = json.loads((tmp_path / "r" / "settings.json").read_text())
    assert record["loss"]["class_weights"] == [0.5, 1.5, 1.5, 1.5]


def test_stopped_by_an_error_and_resumed_is_bit_identical_with_everything(tiny_set, tmp_path, monkeypatch):
    how = QUICK | EVERYTHING
    whole, stopped, resumed = _fresh(), _fresh(), make_net()
    xl.fit(whole, tiny_set, tiny_set, loss=LOSS, out_dir=tmp_path / "whole", **how)
    steps = []
    original = torch.optim.AdamW.step

    def breaks(self, *args):
        steps.append(1)
        if len(steps) == 5:
            raise KeyboardInterrupt
        return original(self, *args)

    with monkeypatch.context() as patched:
        patched.setattr(torch.optim.AdamW, "step", breaks)
        with pytest.raises(KeyboardInterrupt):
            xl.fit(stopped, tiny_set, tiny_set, loss=LOSS, out_dir=tmp_path / "part", **how)
    xl.fit(resumed, tiny_set, tiny_set, loss=LOSS, out_dir=tmp_path / "part", resume=True, **how)
    assert _equal(_weights(whole), _weights(resumed))
    for name in ("last.safetensors", "best.safetensors"):
        a, b = (read_tensors(tmp_path / run / name)[0] for run in ("whole", "part"))
        assert _equal(a, b)


@pytest.mark.parametrize(("name", "value"), [("ema", 0.5), ("accumulate", 3), ("augment", "flip"), ("balanced", False)])
def test_resuming_with_other_options_is_refused(tiny_set, tmp_path, name, value):
    how = QUICK | EVERYTHING | {"out_dir": tmp_path / "r"}
    xl.fit(make_net(), tiny_set, tiny_set, **how | {"epochs": 1})
    with pytest.raises(xl.TrainingError, match="other arguments"):
        xl.fit(make_net(), tiny_set, tiny_set, resume=True, **how | {"epochs": 1, name: value})


def _train_to_the_end(out: Path) -> None:
    pixels = torch.randint(0, 255, (64, 3, 16, 16), generator=torch.Generator().manual_seed(3)).to(torch.uint8)
    data = xl.ImageSet(pixels, torch.arange(64) % 4, tuple("wxyz"))
    net = _fresh()
    xl.fit(net, data, data, loss=LOSS, out_dir=out, resume=True, **QUICK | EVERYTHING | {"epochs": 12})
    torch.save(dict(net.state_dict()), out / "done.pt")


@pytest.mark.slow
def test_killed_and_resumed_is_bit_identical_with_everything(tmp_path):
    """SIGKILL at three moments, whatever is being written then; the last start runs to the end."""
    assert end(fork(_train_to_the_end, tmp_path / "whole")) == 0
    for marker in ("settings.json", "last.safetensors", "best.safetensors"):
        run = fork(_train_to_the_end, tmp_path / "part")
        deadline = time.time() + 60
        while not (tmp_path / "part" / marker).exists() and run.is_alive() and time.time() < deadline:
            time.sleep(0.002)
        run.kill()
        run.join()
    assert end(fork(_train_to_the_end, tmp_path / "part")) == 0
    whole, part = (torch.load(tmp_path / name / "done.pt", weights_only=True) for name in ("whole", "part"))
    assert _equal(whole, part)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"accumulate": 0}, "accumulate"),
        ({"patience": 0}, "patience"),
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"ema": 1.0}, "ema"),
        ({"ema": "yes"}, "ema"),
        ({"monitor": "f1"}, "monitor: expected one of"),
        ({"augment": "flop"}, "Did you mean 'flip'"),
    ],
)
def test_bad_options(tiny_set, values, message):
    with pytest.raises(xl.InputError, match=message):
        xl.fit(make_net(), tiny_set, tiny_set, **QUICK | values)


def test_class_weights_are_checked_before_anything_is_written(tiny_set, tmp_path):
    with pytest.raises(xl.InputError, match="class_weights: expected 4 numbers"):
        xl.fit(make_net(), tiny_set, tiny_set, loss=xl.EGTLoss(class_weights=(1, 2)), out_dir=tmp_path / "r", **QUICK)
    assert not (tmp_path / "r").exists()


def test_what_needs_labels_at_hand_refuses_a_loader(tiny_set):
    loader = DataLoader(tiny_set, 8)
    with pytest.raises(xl.InputError, match="balanced: a DataLoader draws its own"):
        xl.fit(make_net(), loader, tiny_set, balanced=True, **QUICK)
    with pytest.raises(xl.InputError, match="class_weights: needs the training labels"):
        xl.fit(make_net(), loader, tiny_set, loss=LOSS, **QUICK)


def test_colours_change_only_where_normalisation_is_known(tiny_set):
    plain = TensorDataset(tiny_set.inputs, tiny_set.labels)
    with pytest.raises(xl.InputError, match=r"net\.describe\(preprocess="):
        xl.fit(_fresh(), plain, plain, augment="trivial", **QUICK)
    xl.fit(_fresh(), plain, plain, augment="crop", **QUICK | {"epochs": 1})
