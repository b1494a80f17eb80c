import math

from exitlens.workflow.training.monitor import find_best_epoch, is_exhausted

ROWS = [
    {"accuracy": [0.2, 0.5], "val_loss": 1.0},
    {"accuracy": [0.5, 0.4], "val_loss": 0.9},
    {"accuracy": [0.5, 0.4], "val_loss": math.nan},
    {"accuracy": [0.1, 0.5], "val_loss": 0.8},
]


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
