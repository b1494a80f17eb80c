import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

import exitlens as xl
from exitlens.types.settings import TrainingSettings
from exitlens.workflow.training.run import TrainingRun, check_validation, find_best_epoch, is_exhausted, validate

ROWS = [
    {"accuracy": [0.2, 0.5], "val_loss": 1.0},
    {"accuracy": [0.5, 0.4], "val_loss": 0.9},
    {"accuracy": [0.5, 0.4], "val_loss": math.nan},
    {"accuracy": [0.1, 0.5], "val_loss": 0.8},
]


def row(*accuracy):
    return {"epoch": 1, "seconds": 0.5, "loss": {"total": 0.0}, "accuracy": list(accuracy), "cc": []}


@pytest.fixture
def run(net):
    return TrainingRun(net, xl.EGTLoss(), TrainingSettings(epochs=3), workers=0)


def test_the_best_epoch_is_the_first_of_the_best_mean_accuracy(run):
    assert run.best_epoch == 0
    for accuracy in ((0.2, 0.4), (0.5, 0.5), (0.6, 0.4), (0.1, 0.2)):
        run.save(row(*accuracy))
    assert (run.best_epoch, run.epochs_done, run.seconds) == (2, 4, 2.0)


def test_there_is_nothing_to_resume_without_a_directory(run):
    with pytest.raises(xl.errors.TrainingError, match="out_dir"):
        run.open(True, None)


def test_the_best_epoch_is_the_first_of_the_best():
    assert find_best_epoch([], "loss") == 0
    assert find_best_epoch(ROWS, "accuracy") == 2
    assert find_best_epoch(ROWS, "final_accuracy") == 1
    assert find_best_epoch(ROWS, "loss") == 4


def test_patience_counts_the_epochs_since_the_best():
    assert not is_exhausted(ROWS, "accuracy", None)
    assert not is_exhausted(ROWS, "accuracy", 3)
    assert is_exhausted(ROWS, "accuracy", 2)
    assert is_exhausted(ROWS, "final_accuracy", 3)
    assert not is_exhausted(ROWS, "loss", 1)
    assert not is_exhausted([], "loss", 1)


def test_means_over_samples_whatever_the_batches(net, tiny_set):
    loss = xl.EGTLoss(exit_weights=(1.0, 1.0, 1.0))
    whole = validate(net, tiny_set, loss, 64)
    parts = validate(
        net, [(tiny_set.inputs[:20], tiny_set.labels[:20]), (tiny_set.inputs[20:], tiny_set.labels[20:])], loss, 1
    )
    with torch.no_grad():
        outs = net.eval()(tiny_set.inputs)
    assert whole.accuracy == [(out.logits.argmax(1) == tiny_set.labels).float().mean().item() for out in outs]
    expected = sum(F.cross_entropy(out.logits, tiny_set.labels).item() for out in outs) / 3
    assert whole.loss == pytest.approx(expected, rel=1e-5)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-5)
    assert parts.accuracy == pytest.approx(whole.accuracy)
    assert parts.cc == pytest.approx(whole.cc, rel=1e-5)


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
    steps = []
    val = make(tiny_set.inputs, tiny_set.labels)
    with pytest.raises(xl.errors.InputError, match=message):
        xl.fit(
            net, tiny_set, val, epochs=1, out_dir=tmp_path / "run", augment=lambda x: steps.append(1) or x, progress=False
        )
    assert not steps
    assert not (tmp_path / "run").exists()


def test_looking_at_validation_data_changes_neither_random_numbers_nor_iterators(net, tiny_set):
    once = iter([(tiny_set.inputs, tiny_set.labels)])
    before = torch.get_rng_state()
    check_validation(net, once)
    check_validation(net, DataLoader(tiny_set, 4, shuffle=True))
    assert len(list(once)) == 1
    assert torch.equal(torch.get_rng_state(), before)
