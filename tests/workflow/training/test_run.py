import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

import exitlens as xl
from exitlens.progress import show_progress
from exitlens.types.settings import TrainingSettings
from exitlens.workflow.training.optimizer import make_optimizer
from exitlens.workflow.training.run import TrainingRun, check_validation, compute_gradients

ROWS = [
    {"accuracy": [0.2, 0.5], "val_loss": 1.0},
    {"accuracy": [0.5, 0.4], "val_loss": 0.9},
    {"accuracy": [0.5, 0.4], "val_loss": math.nan},
    {"accuracy": [0.1, 0.5], "val_loss": 0.8},
]


def make_run(net, history=(), **settings):
    return TrainingRun(net, xl.EGTLoss(), TrainingSettings(**{"epochs": 9} | settings), history=list(history))


@pytest.mark.parametrize(
    ("monitor", "best", "patience", "is_over"),
    [
        ("accuracy", 2, None, False),
        ("accuracy", 2, 3, False),
        ("accuracy", 2, 2, True),
        ("final_accuracy", 1, 3, True),
        ("loss", 4, 1, False),
    ],
)
def test_patience_counts_the_epochs_since_the_first_of_the_best(net, monitor, best, patience, is_over):
    run, fresh = make_run(net, ROWS, monitor=monitor, patience=patience), make_run(net, monitor=monitor, patience=1)
    assert (run.best_epoch, run.is_over) == (best, is_over)
    assert (fresh.best_epoch, fresh.is_over) == (0, False)
    assert make_run(net, ROWS, epochs=4).is_over


def test_means_over_samples_whatever_the_batches(net, tiny_set):
    run, halves = make_run(net), [(tiny_set.inputs[rows], tiny_set.labels[rows]) for rows in (slice(20), slice(20, None))]
    run.loss = xl.EGTLoss(exit_weights=(1.0, 1.0, 1.0))
    with show_progress(False) as bar:
        whole, parts = (run.validate(data, bar, bar.add_task("validating")) for data in (tiny_set, halves))
    with torch.no_grad():
        outs = net.eval()(tiny_set.inputs)
    assert whole["accuracy"] == [(out.logits.argmax(1) == tiny_set.labels).float().mean().item() for out in outs]
    expected = sum(F.cross_entropy(out.logits, tiny_set.labels).item() for out in outs) / 3
    assert whole["val_loss"] == pytest.approx(expected, rel=1e-5)
    assert parts["val_loss"] == pytest.approx(whole["val_loss"], rel=1e-5)
    assert parts["accuracy"] == pytest.approx(whole["accuracy"])
    assert parts["cc"] == pytest.approx(whole["cc"], rel=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x, y: None, "expected a Dataset"),
        (lambda x, y: TensorDataset(x[:, :2], y), "val: expected"),
        (lambda x, y: TensorDataset(x, y + 9), r"val labels: expected values in \[0, 4\)"),
        (lambda x, y: TensorDataset(x[:0], y[:0]), "val: expected at least one batch"),
        (lambda x, y: DataLoader(TensorDataset(x), 4), "val: expected batches of .* got images only"),
        (lambda x, y: [{"image": 1}], "val: expected batches of .* got dict"),
        (lambda x, y: [("a", "b")], "val: expected batches of .* got tuple of str, str"),
        (lambda x, y: 3, "val: expected a Dataset"),
    ],
)
def test_bad_validation_data_are_refused_before_training(net, tiny_set, tmp_path, make, message):
    steps, val = [], make(tiny_set.inputs, tiny_set.labels)
    options = {"epochs": 1, "out_dir": tmp_path / "run", "augment": lambda x: steps.append(1) or x, "progress": False}
    with pytest.raises(xl.errors.InputError, match=message):
        xl.fit(net, tiny_set, val, **options)
    assert not steps
    assert not (tmp_path / "run").exists()


def test_checking_validation_data_has_no_side_effects(net, tiny_set):
    once = iter([(tiny_set.inputs, tiny_set.labels)])
    before = torch.get_rng_state()
    check_validation(net, once)
    check_validation(net, DataLoader(tiny_set, 4, shuffle=True))
    assert len(list(once)) == 1
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("target", ["attention", "product"])
def test_consistency_that_reaches_heads_leaves_the_backbone_alone(net, images, target):
    for head in net.heads:
        torch.nn.init.normal_(head.attend.weight)
    optimizer, labels = make_optimizer([{"params": list(net.parameters()), "lr": 0.1}]), torch.tensor([0, 1, 2, 3] * 10)

    def find_gradients(loss):
        settings = TrainingSettings(amp=False, channels_last=False)
        compute_gradients(net.train(), optimizer, loss, [(images, labels, 1.0, None)], 0.5, settings)
        return {name: p.grad.clone() for name, p in net.named_parameters()}

    without, heads, whole = (
        find_gradients(xl.EGTLoss(weight=weight, target=target, reach=reach))
        for weight, reach in ((0.0, "heads"), (1.0, "heads"), (1.0, "network"))
    )
    for name, gradient in without.items():
        is_apart = name.startswith("stages") or "classifier" in name
        is_target = (target, name) == ("attention", "heads.2.attend.weight")
        assert torch.allclose(heads[name], gradient, atol=1e-7) == (is_apart or is_target)
    assert not torch.allclose(whole["stages.0.body.a.0.weight"], without["stages.0.body.a.0.weight"], atol=1e-7)
