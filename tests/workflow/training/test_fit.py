"""fit from the outside: it learns, resumes to the bit, says how to go on, and refuses what cannot work."""

import csv
import json
import math
import time
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import v2

import exitlens as xl
from exitlens.io import read_tensors
from exitlens.workflow.training.optimizer import apply_gradients, make_optimizer
from tests.conftest import TinyNet, make_net, make_tiny_set
from tests.ranks import end, fork
from tests.workflow.training.networks import QUICK, WithoutStatistics, equal, fresh, raise_at, weights

EVERYTHING = {"augment": "trivial", "balanced": True, "accumulate": 2, "clip_norm": 0.5, "ema": 0.9, "monitor": "loss"}
EVERYTHING |= {"loss": xl.EGTLoss(label_smoothing=0.1, class_weights="balanced")}


def test_training_learns_and_logs(tiny_set, tmp_path):
    net = fresh()
    result = xl.fit(net, tiny_set, tiny_set, epochs=16, out_dir=tmp_path / "r", batch_size=8, learning_rate=0.03)
    assert not net.training
    assert result.history[-1]["accuracy"][-1] > 0.7
    assert result.history[-1]["loss"]["classification"] < 0.6 * result.history[0]["loss"]["classification"]
    rows = list(csv.DictReader((tmp_path / "r" / "log.csv").read_text().splitlines()))
    assert len(rows) == 16
    assert {"loss_consistency", "accuracy_exit0", "cc_exit1"} <= set(rows[0])
    assert (tmp_path / "r" / "best.safetensors").exists()
    assert result.best_epoch >= 1


@pytest.mark.slow
def test_consistency_training_brings_the_maps_together(tiny_set):
    losses = [xl.EGTLoss(weight=weight, ramp_share=0.1) for weight in (0.0, 3.0)]
    rows = [xl.fit(fresh(), tiny_set, tiny_set, loss=loss, **QUICK | {"epochs": 15}).history[-1] for loss in losses]
    assert rows[1]["loss"]["consistency"] < 0.5
    assert sum(rows[1]["cc"]) > sum(rows[0]["cc"])


@pytest.mark.parametrize(
    "augment",
    [
        lambda x: x + 0.01 * torch.randn_like(x),
        *(pytest.param(value, marks=pytest.mark.slow) for value in ("flip", "crop", "trivial", v2.RandomVerticalFlip())),
    ],
)
def test_the_seed_decides_and_the_global_random_state_does_not(tiny_set, augment):
    runs = []
    for seed in (0, 0, 1):
        net = fresh()
        torch.randn(5)
        state = torch.get_rng_state()
        xl.fit(net, tiny_set, tiny_set, seed=seed, augment=augment, **QUICK | {"epochs": 1})
        assert torch.equal(state, torch.get_rng_state())
        runs.append(weights(net))
    assert equal(runs[0], runs[1])
    assert not equal(runs[0], runs[2])


@pytest.mark.parametrize(
    ("options", "load"),
    [
        (EVERYTHING, lambda data: data),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ({}, lambda data: DataLoader(data, 8, shuffle=True, generator=torch.Generator().manual_seed(3))),
                ({"recipe": "pretrained", "batch_norm": "keep"}, lambda data: data),
                ({"freeze_backbone": True}, lambda data: data),
                ({"freeze_backbone": True, "rely_on": "map"}, lambda data: data),
            )
        ),
        ({"rely_on": "map", "ema": 0.9, "ignore": "background"}, lambda data: data),
    ],
    ids=["everything", "loader", "pretrained", "frozen", "frozen and debiasing", "debiasing"],
)
@pytest.mark.slow
def test_stopped_and_resumed_is_bit_identical(tiny_set, tmp_path, monkeypatch, options, load):
    whole, stopped, resumed = fresh(), fresh(), make_net()  # other weights: everything must come from the checkpoint
    if "freeze_backbone" in options:
        resumed = fresh()
    xl.fit(whole, load(tiny_set), tiny_set, out_dir=tmp_path / "whole", **QUICK | options)
    steps, original = [], torch.optim.AdamW.step

    def interrupt(self, *args):
        steps.append(1)
        # a guide has an epoch more, and an expert takes steps, too
        if len(steps) == 7 - 2 * ("accumulate" in options) + 14 * ("rely_on" in options):
            raise KeyboardInterrupt
        return original(self, *args)

    with monkeypatch.context() as patched:
        patched.setattr(torch.optim.AdamW, "step", interrupt)
        with pytest.raises(KeyboardInterrupt):
            xl.fit(stopped, load(tiny_set), tiny_set, out_dir=tmp_path / "part", **QUICK | options)
    xl.fit(resumed, load(tiny_set), tiny_set, out_dir=tmp_path / "part", resume=True, **QUICK | options)
    assert equal(weights(whole), weights(resumed))
    for name in ("last.safetensors", "best.safetensors"):
        a, b = (read_tensors(tmp_path / run / name)[0] for run in ("whole", "part"))
        assert equal(a, b)


def train_to_the_end(out: Path) -> None:
    data, net = make_tiny_set(64), fresh()
    xl.fit(net, data, data, out_dir=out, resume=True, **QUICK | EVERYTHING | {"epochs": 12})
    torch.save(dict(net.state_dict()), out / "done.pt")


@pytest.mark.slow
def test_killed_and_resumed_is_bit_identical(tmp_path):
    """SIGKILL at three moments, whatever is being written then; the last start runs to the end."""
    assert end(fork(train_to_the_end, tmp_path / "whole")) == 0
    for marker in ("settings.json", "last.safetensors", "best.safetensors"):
        run = fork(train_to_the_end, tmp_path / "part")
        deadline = time.time() + 60
        while not (tmp_path / "part" / marker).exists() and run.is_alive() and time.time() < deadline:
            time.sleep(0.002)
        run.kill()
        run.join()
    assert end(fork(train_to_the_end, tmp_path / "part")) == 0
    whole, part = (torch.load(tmp_path / name / "done.pt", weights_only=True) for name in ("whole", "part"))
    assert equal(whole, part)


def test_an_interrupted_run_says_how_to_go_on(tiny_set, tmp_path):
    nothing, repeated = "nothing was written without out_dir", "; the pass of the frozen backbone is repeated"
    for out_dir, step, frozen, notes in (
        (tmp_path / "r", 2, False, ["in the first epoch", f"resume=True (--resume) goes on in {tmp_path / 'r'}"]),
        (None, 6, False, ["after epoch 1 of 3", nothing]),
        (None, 2, True, [f"in the first epoch{repeated}", nothing]),
    ):
        options = QUICK | {"out_dir": out_dir, "freeze_backbone": frozen}
        with pytest.raises(KeyboardInterrupt) as stop:
            xl.fit(make_net(), tiny_set, tiny_set, augment=raise_at(KeyboardInterrupt(), step), **options)
        assert stop.value.__notes__ == notes


@pytest.mark.slow
def test_more_epochs_go_on_with_the_longer_schedule(tiny_set, tmp_path, capsys):
    options = QUICK | {"out_dir": tmp_path / "r"}
    xl.fit(fresh(), tiny_set, tiny_set, **options)
    longer = options | {"epochs": 5, "resume": True, "progress": True}
    assert len(xl.fit(make_net(), tiny_set, tiny_set, **longer).history) == 5
    assert "epochs: 5, 3 before: training goes on" in capsys.readouterr().out
    with pytest.raises(xl.errors.TrainingError, match=r"epochs \(--epochs\) was 5, is now 3"):
        xl.fit(make_net(), tiny_set, tiny_set, resume=True, **options)


def test_an_existing_run_is_neither_overwritten_nor_mixed(tiny_set, tmp_path):
    out = tmp_path / "r"
    xl.fit(make_net(), tiny_set, tiny_set, out_dir=out, **QUICK)
    before = (out / "last.safetensors").read_bytes()
    with pytest.raises(xl.errors.OutputExistsError, match="resume=True"):
        xl.fit(make_net(), tiny_set, tiny_set, out_dir=out, **QUICK)
    with pytest.raises(xl.errors.TrainingError, match=r"other arguments: length \(--data\) was 32, is now 20"):
        xl.fit(make_net(), tiny_set.first(20), tiny_set, out_dir=out, resume=True, **QUICK)
    others = {"loss": xl.EGTLoss(weight=2.0), "ema": 0.5}
    changes = r"ema \(--ema\) was none, is now 0.5; weight \(--egt-weight\) was 1.0, is now 2.0"
    with pytest.raises(xl.errors.TrainingError, match=changes):
        xl.fit(make_net(), tiny_set, tiny_set, out_dir=out, resume=True, **QUICK | others)
    assert (out / "last.safetensors").read_bytes() == before
    (out / "settings.json").write_text("{")
    with pytest.raises(xl.errors.TrainingError, match="damaged"):
        xl.fit(make_net(), tiny_set, tiny_set, out_dir=out, resume=True, **QUICK)
    (tmp_path / "file").write_text("x")
    with pytest.raises(xl.errors.OutputError, match="cannot be a directory"):
        xl.fit(make_net(), tiny_set, tiny_set, out_dir=tmp_path / "file", **QUICK)
    with pytest.raises(xl.errors.TrainingError, match="nothing to resume"):
        xl.fit(make_net(), tiny_set, tiny_set, resume=True, **QUICK)


@pytest.mark.parametrize("first_epoch_ends", [False, True])
def test_errors_remove_only_runs_without_an_epoch(net, tiny_set, tmp_path, first_epoch_ends):
    options = {"epochs": 2, "batch_size": len(tiny_set), "out_dir": tmp_path, "progress": False}  # an epoch is a step
    failing = raise_at(RuntimeError("no such augmentation"), 1 + first_epoch_ends)
    with pytest.raises(RuntimeError, match="no such augmentation"):
        xl.fit(net, tiny_set, tiny_set, augment=failing, **options)
    assert bool(list(tmp_path.iterdir())) == first_epoch_ends
    assert len(xl.fit(net, tiny_set, tiny_set, resume=first_epoch_ends, **options).history) == 2


@pytest.mark.parametrize("final", [pytest.param("head", marks=pytest.mark.slow), "keep"])
@pytest.mark.parametrize("options", [{"freeze_backbone": True}, {"batch_norm": "keep"}], ids=["frozen", "kept statistics"])
def test_frozen_parts_do_not_change(tiny_set, final, options):
    net = fresh(final)
    before = weights(net)
    xl.fit(net, tiny_set, tiny_set, **QUICK | options)
    for name, value in weights(net).items():
        kept = "running" in name or "num_batches" in name
        if "freeze_backbone" in options:
            kept = name.startswith("stages") or "tail" in name
        assert torch.equal(before[name], value) == kept, name
    assert all(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize(
    ("loss", "freeze"),
    [
        *((xl.EGTLoss(of=of, distance="cosine", distill=0.1), False) for of in ("attention", "evidence", "activation")),
        *((xl.EGTLoss(target=target), freeze) for target in ("relevance", "product", "mean") for freeze in (True, False)),
    ],
)
@pytest.mark.slow
def test_every_loss_trains_every_map(tiny_set, loss, freeze):
    net, before = make_net(), make_net()
    result = xl.fit(net, tiny_set, tiny_set, loss=loss, freeze_backbone=freeze, **QUICK | {"epochs": 1})
    assert result.history[0]["loss"]["consistency"] > 0
    for head, other in zip(net.heads, before.heads, strict=True):
        assert not torch.equal(head.attend.weight, other.attend.weight)


@pytest.mark.parametrize(
    ("loss", "epochs", "frozen"),
    [
        pytest.param(None, 12, False, marks=pytest.mark.slow),  # targets have a floor from the eleventh epoch on
        (None, 2, False),
        (xl.EGTLoss(target="product", every=2), 2, False),
        (xl.EGTLoss(of="activation"), 2, False),
        (xl.EGTLoss(), 2, True),
    ],
)
@pytest.mark.slow
def test_a_loop_of_ones_own_ends_with_the_weights_of_fit(tiny_set, loss, epochs, frozen):
    reference, net = fresh(), fresh()
    exact = {"channels_last": False, "share_cores": False, "cache_features": None if not frozen else False}
    train = DataLoader(tiny_set, 8)
    xl.fit(reference, train, tiny_set, loss=loss, **QUICK | exact | {"epochs": epochs, "freeze_backbone": frozen})
    if frozen:
        net.stages.requires_grad_(False)
    model = net.with_loss(loss, steps=epochs * len(train), epochs=epochs).train()
    if frozen:
        net.stages.eval()
    settings = xl.TrainingSettings()
    trained = [p for p in net.parameters() if p.requires_grad]
    optimizer = make_optimizer([{"params": trained, "peak": settings.learning_rate, "weight_decay": settings.weight_decay}])
    batches = [batch for _ in range(epochs) for batch in train]
    for step, (images, labels) in enumerate(batches):
        terms, outputs = model(images, labels, step)
        terms.total.backward()
        apply_gradients(optimizer, step / len(batches), settings)
        assert model.scale_rate(step) == pytest.approx(optimizer.param_groups[0]["lr"] / settings.learning_rate)
        optimizer.zero_grad()
    assert equal(weights(net), weights(reference))
    assert not equal(weights(net), weights(fresh()))
    assert len(outputs) == net.num_exits


def test_logged_consistency_averages_the_steps_that_computed_it(tiny_set):
    logged, asked = [], []

    class Counting(xl.EGTLoss):
        def __call__(self, *given, **named):
            asked.append(self.weight)
            return super().__call__(*given, **named)

    for every in (1, 2, 100):
        asked.clear()
        options = QUICK | {"epochs": 2, "learning_rate": 1e-9}
        history = xl.fit(make_net(), tiny_set, tiny_set, loss=Counting(every=every, ramp_share=0.0), **options).history
        assert set(asked) == {1: {1.0}, 2: {2.0, 0.0}, 100: {100.0, 0.0}}[every]
        logged.append([row["loss"]["consistency"] for row in history])
    assert logged[1] == pytest.approx(logged[0], rel=0.2)
    assert math.isnan(logged[2][1])  # no step of the second epoch asked


def assert_train_alike(runs, val):
    nets = []
    for train, options in runs:
        nets.append(fresh(backbone=WithoutStatistics))
        xl.fit(nets[-1], train, val, **QUICK | options)
    for a, b in zip(*(net.parameters() for net in nets), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("class_weights", [pytest.param(None, marks=pytest.mark.slow), (1.0, 2.0, 3.0, 4.0)])
def test_accumulated_batches_are_one_large_batch(tiny_set, class_weights):
    loss = xl.EGTLoss(class_weights=class_weights)
    options = ({"batch_size": 16, "loss": loss}, {"batch_size": 4, "accumulate": 4, "loss": loss})
    assert_train_alike([(tiny_set, values) for values in options], tiny_set)


def test_uneven_batches_of_one_step_weigh_as_their_samples(tiny_set):
    halves = [(tiny_set.inputs[:24], tiny_set.labels[:24]), (tiny_set.inputs[24:], tiny_set.labels[24:])]
    assert_train_alike([(DataLoader(halves, batch_size=None), {"accumulate": 2}), (DataLoader(tiny_set, 32), {})], tiny_set)


def test_the_gradient_is_clipped_and_the_last_step_takes_the_batches_that_are_left(tiny_set, monkeypatch):
    norms, original = [], torch.optim.AdamW.step

    def step(self, *args):
        norms.append(sum(float(p.grad.square().sum()) for g in self.param_groups for p in g["params"] if p.grad is not None))
        return original(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    result = xl.fit(fresh(), tiny_set, tiny_set, clip_norm=0.01, accumulate=3, **QUICK)
    assert len(norms) == 3 * 2  # 4 batches: 3 and 1
    assert max(norms) <= 0.0101**2
    assert 0 < result.history[0]["loss"]["total"] < 3


@pytest.mark.slow
def test_the_average_of_the_weights_is_validated_saved_and_kept(tiny_set, tmp_path):
    net, plain = fresh(), fresh()
    result = xl.fit(net, tiny_set, tiny_set, ema=0.9, out_dir=tmp_path / "r", **QUICK)
    stored, _ = read_tensors(tmp_path / "r" / "last.safetensors")
    averages = {name.removeprefix("ema."): value for name, value in stored.items() if name.startswith("ema.")}
    del averages["steps"]
    raw = {name.removeprefix("net."): value for name, value in stored.items() if name.startswith("net.")}
    assert equal(averages, net.state_dict())
    assert not equal(averages, raw)
    trace = xl.collect(net, tiny_set)
    accuracy = (trace.logits.argmax(2) == tiny_set.labels[:, None]).float().mean(0)
    assert accuracy.tolist() == result.history[-1]["accuracy"]
    xl.fit(plain, tiny_set, tiny_set, **QUICK)
    assert equal(raw, plain.state_dict())  # averaging does not change how it trains


@pytest.mark.parametrize("ema", [None, pytest.param(0.5, marks=pytest.mark.slow)])
def test_the_best_epoch_is_kept(tiny_set, tmp_path, ema):
    net = fresh()
    result = xl.fit(net, tiny_set, tiny_set, ema=ema, keep="best", out_dir=tmp_path / "r", **QUICK | {"epochs": 6})
    best, note = read_tensors(tmp_path / "r" / "best.safetensors")
    assert note["epoch"] == result.best_epoch == result.kept_epoch
    assert equal(best, net.state_dict())


def test_training_stops_early_with_the_best_weights_and_stays_stopped(tiny_set, tmp_path, capsys):
    options = QUICK | {"epochs": 40, "learning_rate": 1e-7, "out_dir": tmp_path / "r", "patience": 2}
    net, again = fresh(), make_net()
    result = xl.fit(net, tiny_set, tiny_set, **options | {"progress": True})
    assert "stopped: no better accuracy" in capsys.readouterr().out
    assert len(result.history) == result.best_epoch + 2 < 40
    assert result.kept_epoch == result.best_epoch
    assert equal(read_tensors(tmp_path / "r" / "best.safetensors")[0], net.state_dict())
    assert xl.fit(again, tiny_set, tiny_set, resume=True, **options).history == result.history
    assert equal(weights(net), weights(again))


def test_balanced_class_weights_are_recorded_as_numbers(tiny_set, tmp_path):
    few = tiny_set.subset(torch.tensor([0, 1, 2, 3, 4, 8]))  # class 0 three times
    xl.fit(fresh(), few, tiny_set, loss=xl.EGTLoss(class_weights="balanced"), out_dir=tmp_path / "r", **QUICK)
    record = json.loads((tmp_path / "r" / "settings.json").read_text())
    assert record["loss"]["class_weights"] == [0.5, 1.5, 1.5, 1.5]
    assert record["settings"]["recipe"] == "scratch"


@pytest.mark.parametrize("was_last", [False, True])
def test_the_network_keeps_its_memory_format(tiny_set, was_last):
    net = fresh()
    if was_last:
        net.to(memory_format=torch.channels_last)
    xl.fit(net, tiny_set, tiny_set, **QUICK | {"epochs": 1})
    assert net.is_channels_last == was_last
    with pytest.raises(xl.errors.InputError):
        xl.fit(net, tiny_set, tiny_set.inputs, **QUICK | {"epochs": 1})  # no labels
    assert net.is_channels_last == was_last


def test_a_loss_that_is_not_finite_stops(tiny_set):
    net = make_net()
    with torch.no_grad():
        net.head(0).classifier.weight.fill_(float("nan"))
    with pytest.raises(xl.errors.TrainingError, match="lower learning_rate"):
        xl.fit(net, tiny_set, tiny_set, **QUICK)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0}, "epochs"),
        ({"loss": "kl"}, "loss"),
        ({"out_dir": 3}, "out_dir"),
        ({"augment": 3}, "augment"),
        ({"augment": "flop"}, "Did you mean 'flip'"),
        ({"workers": -1}, "workers"),
        ({"loss": xl.EGTLoss(class_weights=(1, 2))}, "class_weights: expected 4 numbers"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(tiny_set, tmp_path, values, message):
    with pytest.raises(xl.errors.InputError, match=message):
        xl.fit(make_net(), tiny_set, tiny_set, **QUICK | {"out_dir": tmp_path / "r"} | values)
    assert not (tmp_path / "r").exists()


@pytest.mark.slow
def test_every_exit_learns_a_teachers_answers(tiny_set, tmp_path):
    swapped = tiny_set.subset(torch.arange(32))
    swapped.labels = (swapped.labels + 1) % 4  # what the teacher says, the labels do not
    teacher = xl.attach(TinyNet(), [], 4, tiny_set.first(1).inputs, final="keep")
    xl.fit(teacher, swapped, swapped, **QUICK | {"epochs": 20, "learning_rate": 0.03})
    teacher.train()
    options = QUICK | {"epochs": 12, "learning_rate": 0.03, "out_dir": tmp_path / "r"}
    loss = xl.EGTLoss(exit_weights=(1.0, 1.0, 1.0))
    taught, alone = fresh(), fresh()
    result = xl.fit(taught, tiny_set, tiny_set, loss=loss, teacher=teacher, **options)
    xl.fit(alone, tiny_set, tiny_set, loss=loss, **options | {"out_dir": None})
    assert not teacher.training
    assert result.history[-1]["loss"]["distillation"] > 0

    def follow(net):
        target = (teacher(tiny_set.inputs)[-1].logits / 2).softmax(1)
        return torch.stack([-(target * (out.logits / 2).log_softmax(1)).sum(1).mean() for out in net(tiny_set.inputs)])

    assert (follow(taught) < follow(alone) - 0.2).all()
    record = json.loads((tmp_path / "r" / "settings.json").read_text())
    assert record["settings"]["teacher"] == teacher.fingerprint()
    with pytest.raises(xl.errors.TrainingError, match=r"teacher \(--teacher\) was .*, is now none"):
        xl.fit(fresh(), tiny_set, tiny_set, loss=loss, resume=True, **options)


class WithoutTeacher(xl.EGTLoss):
    def __call__(self, outputs, labels, progress=1.0, features=None):
        return super().__call__(outputs, labels, progress, features)


def test_teachers_that_cannot_teach(tiny_set):
    named = make_net()
    named.describe(classes=("e", "f", "g", "h"))
    pupil = make_net()
    pupil.describe(classes=("a", "b", "c", "d"))
    for net, options, message in (
        (pupil, {"teacher": TinyNet()}, r"teacher: expected .*ExitNet.*final='keep'"),
        (pupil, {"teacher": fresh(classes=5)}, "teacher: expected the network's own answers, 4 classes, got 5 classes"),
        (pupil, {"teacher": named}, "the network's own classes, .*'a'.*, got .*'e'"),
        (pupil, {"teacher": fresh(), "loss": WithoutTeacher()}, "passes teacher=, which WithoutTeacher does not take"),
        (fresh("keep"), {"teacher": fresh(), "freeze_backbone": True, "cache_features": True}, "has to see the inputs"),
    ):
        with pytest.raises(xl.errors.InputError, match=message):
            xl.fit(net, tiny_set, tiny_set, **QUICK | options)


def _one_value(stage, _):
    if stage.training:
        raise ValueError("Expected more than 1 value per channel when training")


def test_data_and_networks_that_cannot_be_trained(tiny_set):
    net = make_net()
    wrong, plain = (TensorDataset(tiny_set.inputs, tiny_set.labels + shift) for shift in (3, 0))
    loader = DataLoader(tiny_set, 8)
    for train, val, options, message in (
        (DataLoader(tiny_set.inputs, 8), tiny_set, {}, "images only"),
        (wrong, tiny_set, {}, r"\[0, 4\)"),
        (tiny_set, [(tiny_set.inputs, tiny_set.labels[:, None])], {}, r"val labels: expected \(32,\)"),
        (tiny_set.first(0), tiny_set, {}, "empty"),
        ((x for x in [1]), tiny_set, {}, "Dataset with a length"),
        (loader, tiny_set, {"balanced": True}, "balanced: a DataLoader draws its own"),
        (loader, tiny_set, {"loss": EVERYTHING["loss"]}, "class_weights: needs the training labels"),
        (plain, plain, {"augment": "trivial"}, r"net\.describe\(preprocess="),  # nobody knows how colours are normalised
    ):
        with pytest.raises(xl.errors.InputError, match=message):
            xl.fit(net, train, val, **QUICK | options)
    xl.fit(fresh(), plain, plain, augment="crop", **QUICK | {"epochs": 1})
    small = xl.attach(TinyNet(), ["a"], 4, torch.zeros(1, 3, 8, 8))
    for stage in small.stages:
        stage.register_forward_pre_hook(_one_value)
    with pytest.raises(xl.errors.TrainingError, match="drop_last"):
        xl.fit(small, tiny_set, tiny_set, **QUICK)
    headless = xl.attach(TinyNet(), [], 4, torch.zeros(1, 3, 16, 16), final="keep")
    with pytest.raises(xl.errors.TrainingError, match="nothing is left"):
        xl.fit(headless, [], [], freeze_backbone=True)
