import csv
import math
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import exitlens as xl
from exitlens.io import read_tensors
from tests.conftest import TinyNet, make_net
from tests.ranks import end, fork

QUICK = {"epochs": 3, "batch_size": 8, "progress": False, "amp": False}


def _fresh(final: str = "head") -> xl.ExitNet:
    torch.manual_seed(7)
    return xl.attach(TinyNet(), ["a", "b"], 4, torch.zeros(1, 3, 16, 16), final=final)


def _weights(net: xl.ExitNet) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def _equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_training_learns_and_logs(tiny_set, tmp_path):
    net = _fresh()
    result = xl.fit(net, tiny_set, tiny_set, epochs=30, out_dir=tmp_path / "r", batch_size=8, learning_rate=0.02)
    assert not net.training
    assert result.history[-1]["accuracy"][-1] > 0.7
    assert result.history[-1]["loss"]["classification"] < 0.6 * result.history[0]["loss"]["classification"]
    rows = list(csv.DictReader((tmp_path / "r" / "log.csv").read_text().splitlines()))
    assert len(rows) == 30
    assert {"loss_consistency", "accuracy_exit0", "cc_exit1"} <= set(rows[0])
    assert (tmp_path / "r" / "best.safetensors").exists()
    assert result.best_epoch >= 1


def test_consistency_training_brings_the_maps_together(tiny_set):
    values = []
    for weight in (0.0, 3.0):
        net = _fresh()
        loss = xl.EGTLoss(weight=weight, ramp_share=0.1)
        values.append(xl.fit(net, tiny_set, tiny_set, loss=loss, **{**QUICK, "epochs": 15}).history[-1])
    assert sum(values[1]["loss"][name] for name in ("consistency",)) < 0.5
    trace_gap = [sum(v["cc"]) for v in values]
    assert trace_gap[1] > trace_gap[0]


def test_the_same_seed_gives_the_same_weights_and_another_other_ones(tiny_set):
    runs = []
    for seed in (0, 0, 1):
        net = _fresh()
        torch.randn(5)  # the global random state must not matter
        xl.fit(net, tiny_set, tiny_set, seed=seed, augment=lambda x: x + 0.01 * torch.randn_like(x), **QUICK)
        runs.append(_weights(net))
    assert _equal(runs[0], runs[1])
    assert not _equal(runs[0], runs[2])


def test_global_random_state_is_left_alone(tiny_set):
    net, state = make_net(), torch.get_rng_state()
    xl.fit(net, tiny_set, tiny_set, **QUICK)
    assert torch.equal(state, torch.get_rng_state())


def test_stopped_by_an_error_and_resumed_is_bit_identical(tiny_set, tmp_path):
    whole = _fresh()
    xl.fit(whole, tiny_set, tiny_set, out_dir=tmp_path / "whole", **QUICK)
    steps = []

    def breaks(x):
        steps.append(1)
        if len(steps) == 7:
            raise KeyboardInterrupt
        return x

    stopped = _fresh()
    with pytest.raises(KeyboardInterrupt):
        xl.fit(stopped, tiny_set, tiny_set, out_dir=tmp_path / "part", augment=breaks, **QUICK)
    resumed = make_net()  # other weights: everything must come from the checkpoint
    xl.fit(resumed, tiny_set, tiny_set, out_dir=tmp_path / "part", resume=True, **QUICK)
    assert _equal(_weights(whole), _weights(resumed))
    for name in ("last.safetensors", "best.safetensors"):
        a, b = (read_tensors(tmp_path / run / name)[0] for run in ("whole", "part"))
        assert _equal(a, b)


def test_more_epochs_go_on_with_the_longer_schedule(tiny_set, tmp_path, capsys):
    how = QUICK | {"out_dir": tmp_path / "r"}
    xl.fit(_fresh(), tiny_set, tiny_set, **how)
    longer = how | {"epochs": 5, "resume": True, "progress": True}
    assert len(xl.fit(make_net(), tiny_set, tiny_set, **longer).history) == 5
    assert "epochs: 5, 3 before: training goes on" in capsys.readouterr().out
    with pytest.raises(xl.TrainingError, match=r"epochs \(--epochs\) was 5, is now 3"):
        xl.fit(make_net(), tiny_set, tiny_set, resume=True, **how)


def test_an_interrupted_run_says_how_to_go_on(tiny_set, tmp_path):
    steps = []

    def interrupt(x):
        steps.append(1)
        if len(steps) in (2, 8):
            raise KeyboardInterrupt
        return x

    for out_dir, note in (
        (tmp_path / "r", f"in the first epoch: resume=True (--resume) goes on in {tmp_path / 'r'}"),
        (None, "after epoch 1 of 3: nothing was written without out_dir"),
    ):
        with pytest.raises(KeyboardInterrupt) as stop:
            xl.fit(make_net(), tiny_set, tiny_set, out_dir=out_dir, augment=interrupt, **QUICK)
        assert stop.value.__notes__ == [note]


def _train_to_the_end(out: Path) -> None:
    pixels = torch.randint(0, 255, (64, 3, 16, 16), generator=torch.Generator().manual_seed(3)).to(torch.uint8)
    data = xl.ImageSet(pixels, torch.arange(64) % 4, tuple("wxyz"))
    net = _fresh()
    xl.fit(net, data, data, out_dir=out, resume=True, **{**QUICK, "epochs": 12})
    torch.save(dict(net.state_dict()), out / "done.pt")


@pytest.mark.slow
def test_killed_and_resumed_is_bit_identical(tmp_path):
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


def test_a_frozen_backbone_keeps_weights_and_statistics(tiny_set):
    for final in ("head", "keep"):
        net = _fresh(final)
        before = _weights(net)
        xl.fit(net, tiny_set, tiny_set, freeze_backbone=True, **QUICK)
        after = _weights(net)
        for name in before:
            frozen = name.startswith("stages") or "tail" in name
            assert torch.equal(before[name], after[name]) == frozen, name
        assert all(p.requires_grad for p in net.parameters())


def test_nothing_to_train():
    net = xl.attach(TinyNet(), [], 4, torch.zeros(1, 3, 16, 16), final="keep")
    with pytest.raises(xl.TrainingError, match="nothing is left"):
        xl.fit(net, [], [], freeze_backbone=True)


@pytest.mark.parametrize("of", ["attention", "evidence", "activation"])
def test_every_map_trains(tiny_set, of):
    loss = xl.EGTLoss(of=of, distance="cosine", distill=0.1)
    result = xl.fit(make_net(), tiny_set, tiny_set, loss=loss, **{**QUICK, "epochs": 1})
    assert math.isfinite(result.history[0]["loss"]["total"])


@pytest.mark.parametrize("target", ["relevance", "product", "mean"])
@pytest.mark.parametrize("freeze", [True, False])
def test_relevance_trains_every_map(tiny_set, target, freeze):
    net, before = make_net(), make_net()
    result = xl.fit(net, tiny_set, tiny_set, loss=xl.EGTLoss(target=target), freeze_backbone=freeze, **QUICK)
    assert result.history[0]["loss"]["consistency"] > 0
    for head, other in zip(net.heads, before.heads, strict=True):
        assert not torch.equal(head.attend.weight, other.attend.weight)


def test_the_log_has_the_consistency_of_the_steps_that_were_asked_for_it(tiny_set):
    found, asked = [], []

    class Counting(xl.EGTLoss):
        def __call__(self, *given, **named):
            asked.append(self.weight)
            return super().__call__(*given, **named)

    for every in (1, 2, 100):
        asked.clear()
        how = {**QUICK, "epochs": 2, "learning_rate": 1e-9}
        history = xl.fit(make_net(), tiny_set, tiny_set, loss=Counting(every=every, ramp_share=0.0), **how).history
        assert set(asked) == {1: {1.0}, 2: {2.0, 0.0}, 100: {100.0, 0.0}}[every]
        found.append([row["loss"]["consistency"] for row in history])
    assert found[1] == pytest.approx(found[0], rel=0.2)
    assert math.isnan(found[2][1])  # no step of the second epoch asked


def test_relevance_goes_through_the_backbone_in_every_epoch(tiny_set):
    how = {"freeze_backbone": True, "cache_features": True}
    with pytest.raises(xl.InputError, match="cache_features: the target is relevance"):
        xl.fit(make_net(), tiny_set, tiny_set, loss=xl.EGTLoss(target="product"), **how, **QUICK)


def test_a_loader_is_used_as_it_is(tiny_set):
    result = xl.fit(make_net(), DataLoader(tiny_set, 4, shuffle=True), DataLoader(tiny_set, 4), **QUICK)
    assert len(result.history) == 3


def test_keep_best(tiny_set, tmp_path):
    net = _fresh()
    result = xl.fit(net, tiny_set, tiny_set, out_dir=tmp_path / "r", keep="best", **{**QUICK, "epochs": 6})
    best, note = read_tensors(tmp_path / "r" / "best.safetensors")
    assert note["epoch"] == result.best_epoch
    assert _equal(best, _weights(net))


def test_an_existing_run_is_not_overwritten(tiny_set, tmp_path):
    xl.fit(make_net(), tiny_set, tiny_set, out_dir=tmp_path / "r", **QUICK)
    before = (tmp_path / "r" / "last.safetensors").read_bytes()
    with pytest.raises(xl.OutputExistsError, match="resume=True"):
        xl.fit(make_net(), tiny_set, tiny_set, out_dir=tmp_path / "r", **QUICK)
    with pytest.raises(xl.TrainingError, match="other arguments"):
        xl.fit(make_net(), tiny_set, tiny_set, out_dir=tmp_path / "r", resume=True, **{**QUICK, "epochs": 2})
    assert (tmp_path / "r" / "last.safetensors").read_bytes() == before
    with pytest.raises(xl.TrainingError, match="nothing to resume"):
        xl.fit(make_net(), tiny_set, tiny_set, resume=True, **QUICK)


def test_a_loss_that_is_not_finite_stops(tiny_set):
    net = make_net()
    with torch.no_grad():
        net.head(0).classifier.weight.fill_(float("nan"))
    with pytest.raises(xl.TrainingError, match="lower learning_rate"):
        xl.fit(net, tiny_set, tiny_set, **QUICK)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0}, "epochs"),
        ({"learning_rate": -1}, "learning_rate"),
        ({"keep": "first"}, "keep"),
        ({"batch_size": 0}, "batch_size"),
        ({"weight_decay": -1}, "weight_decay"),
        ({"seed": -1}, "seed"),
        ({"loss": "kl"}, "loss"),
        ({"learning_rate": "a"}, "learning_rate"),
        ({"seed": "a"}, "seed"),
        ({"out_dir": 3}, "out_dir"),
        ({"augment": 3}, "augment"),
        ({"workers": -1}, "workers"),
        ({"recipe": "fast"}, "recipe"),
        ({"head_learning_rate": 0.0}, "head_learning_rate"),
        ({"head_learning_rate": "a"}, "head_learning_rate"),
        ({"layer_decay": 1.5}, "layer_decay"),
        ({"warm_up": 1.0}, "warm_up"),
        ({"batch_norm": "off"}, "batch_norm"),
    ],
)
def test_bad_arguments(tiny_set, values, message):
    with pytest.raises(xl.InputError, match=message):
        xl.fit(make_net(), tiny_set, tiny_set, **{**QUICK, **values})


def _one_value(stage, _):
    if stage.training:
        raise ValueError("Expected more than 1 value per channel when training")


def test_a_loader_with_its_own_generator_resumes_exactly(tiny_set, tmp_path):
    def loader():
        return DataLoader(tiny_set, 8, shuffle=True, generator=torch.Generator().manual_seed(3))

    whole, part = _fresh(), _fresh()
    xl.fit(whole, loader(), tiny_set, out_dir=tmp_path / "whole", **QUICK)
    seen = []

    def breaks(x):
        seen.append(1)
        if len(seen) == 6:
            raise KeyboardInterrupt
        return x

    with pytest.raises(KeyboardInterrupt):
        xl.fit(part, loader(), tiny_set, out_dir=tmp_path / "part", augment=breaks, **QUICK)
    resumed = _fresh()
    xl.fit(resumed, loader(), tiny_set, out_dir=tmp_path / "part", resume=True, **QUICK)
    assert _equal(_weights(whole), _weights(resumed))


def test_resume_with_other_data_or_damaged_settings(tiny_set, tmp_path):
    xl.fit(make_net(), tiny_set, tiny_set, out_dir=tmp_path / "r", **QUICK)
    with pytest.raises(xl.TrainingError, match=r"length \(--data\) was 32, is now 20"):
        xl.fit(make_net(), tiny_set.first(20), tiny_set, out_dir=tmp_path / "r", resume=True, **QUICK)
    others = {"loss": xl.EGTLoss(weight=2.0), **QUICK, "epochs": 5, "batch_size": 4}
    with pytest.raises(
        xl.TrainingError, match=r"batch_size \(--batch-size\) was 8, is now 4; weight \(--egt-weight\) was 1.0, is now 2.0"
    ):
        xl.fit(make_net(), tiny_set, tiny_set, out_dir=tmp_path / "r", resume=True, **others)
    (tmp_path / "r" / "settings.json").write_text("{")
    with pytest.raises(xl.TrainingError, match="damaged"):
        xl.fit(make_net(), tiny_set, tiny_set, out_dir=tmp_path / "r", resume=True, **QUICK)
    (tmp_path / "file").write_text("x")
    with pytest.raises(xl.OutputExistsError, match="cannot be a directory"):
        xl.fit(make_net(), tiny_set, tiny_set, out_dir=tmp_path / "file", **QUICK)


def test_bad_data(tiny_set):
    net = make_net()
    with pytest.raises(xl.InputError, match="images only"):
        xl.fit(net, DataLoader(tiny_set.inputs, 8), tiny_set, **QUICK)
    with pytest.raises(xl.InputError, match="val: expected at least one batch"):
        xl.fit(net, tiny_set, [], **QUICK)
    wrong = TensorDataset(tiny_set.inputs, tiny_set.labels + 3)
    with pytest.raises(xl.InputError, match=r"\[0, 4\)"):
        xl.fit(net, wrong, tiny_set, **QUICK)
    with pytest.raises(xl.InputError, match=r"val labels: expected values in \[0, 4\)"):
        xl.fit(net, tiny_set, wrong, **QUICK)
    with pytest.raises(xl.InputError, match=r"val labels: expected \(32,\)"):
        xl.fit(net, tiny_set, [(tiny_set.inputs, tiny_set.labels[:, None])], **QUICK)
    with pytest.raises(xl.InputError, match="empty"):
        xl.fit(net, tiny_set.first(0), tiny_set, **QUICK)
    with pytest.raises(xl.InputError, match="Dataset with a length"):
        xl.fit(net, (x for x in [1]), tiny_set, **QUICK)
    small = xl.attach(TinyNet(), ["a"], 4, torch.zeros(1, 3, 8, 8))
    for stage in small.stages:
        stage.register_forward_pre_hook(_one_value)
    with pytest.raises(xl.TrainingError, match="drop_last"):
        xl.fit(small, tiny_set, tiny_set, **QUICK)


def test_tensorboard(tiny_set, tmp_path):
    pytest.importorskip("tensorboard")
    xl.fit(make_net(), tiny_set, tiny_set, out_dir=tmp_path / "r", tensorboard=True, **QUICK)
    assert list((tmp_path / "r").glob("events.out.tfevents*"))


def test_tensorboard_missing_names_the_extra(tiny_set, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(xl.MissingExtraError, match=r"exitlens\[log\]"):
        xl.fit(make_net(), tiny_set, tiny_set, out_dir=tmp_path / "r", tensorboard=True, **QUICK)


@pytest.mark.parametrize("was_last", [False, True])
def test_the_network_keeps_its_memory_format(tiny_set, was_last):
    net = _fresh()
    if was_last:
        net.to(memory_format=torch.channels_last)
    xl.fit(net, tiny_set, tiny_set, **QUICK | {"epochs": 1})
    assert net.is_channels_last == was_last
    with pytest.raises(xl.InputError):
        xl.fit(net, tiny_set, tiny_set.inputs, **QUICK | {"epochs": 1})  # no labels
    assert net.is_channels_last == was_last


def test_the_pretrained_recipe_resumes_exactly(tiny_set, tmp_path):
    how = {**QUICK, "recipe": "pretrained", "batch_norm": "keep"}
    whole, part = _fresh(), _fresh()
    xl.fit(whole, tiny_set, tiny_set, out_dir=tmp_path / "whole", **how)
    seen = []

    def breaks(x):
        seen.append(1)
        if len(seen) == 6:
            raise KeyboardInterrupt
        return x

    with pytest.raises(KeyboardInterrupt):
        xl.fit(part, tiny_set, tiny_set, out_dir=tmp_path / "part", augment=breaks, **how)
    resumed = make_net()
    xl.fit(resumed, tiny_set, tiny_set, out_dir=tmp_path / "part", resume=True, **how)
    assert _equal(_weights(whole), _weights(resumed))


def test_heads_move_farther_than_the_body(tiny_set):
    net = _fresh()
    before = _weights(net)
    xl.fit(net, tiny_set, tiny_set, learning_rate=1e-5, head_learning_rate=1e-2, **QUICK)
    moved = {name: (value - before[name]).abs().max().item() for name, value in _weights(net).items()}
    assert moved["heads.0.classifier.weight"] > 1e-3
    assert 0 < moved["stages.0.body.a.0.weight"] < 1e-3


@pytest.mark.parametrize("final", ["head", "keep"])
def test_kept_statistics_stay_while_the_backbone_trains(tiny_set, final):
    net = _fresh(final)
    before = _weights(net)
    xl.fit(net, tiny_set, tiny_set, batch_norm="keep", **QUICK)
    for name, value in _weights(net).items():
        assert torch.equal(value, before[name]) == ("running" in name or "num_batches" in name), name


def test_an_error_before_the_first_epochs_end_leaves_the_directory_usable(net, tiny_set, tmp_path):
    def fail(x):
        raise RuntimeError("no such augmentation")

    with pytest.raises(RuntimeError, match="no such augmentation"):
        xl.fit(net, tiny_set, tiny_set, epochs=1, out_dir=tmp_path, augment=fail, progress=False)
    assert not list(tmp_path.iterdir())
    xl.fit(net, tiny_set, tiny_set, epochs=1, out_dir=tmp_path, progress=False)


def test_an_error_after_the_first_epoch_takes_nothing_back(net, tiny_set, tmp_path):
    seen = []

    def fail_late(x):
        seen.append(1)
        if len(seen) == 2:
            raise RuntimeError("late")
        return x

    how = {"epochs": 2, "batch_size": len(tiny_set), "out_dir": tmp_path, "progress": False}  # an epoch is a step
    with pytest.raises(RuntimeError, match="late"):
        xl.fit(net, tiny_set, tiny_set, augment=fail_late, **how)
    assert len(xl.fit(net, tiny_set, tiny_set, augment=lambda x: x, resume=True, **how).history) == 2
