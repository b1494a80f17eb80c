import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import exitlens as xl
from exitlens.data.batches import make_epoch_loader
from exitlens.data.sampling import draw_order, read_labels, weigh_classes

SKEWED = TensorDataset(torch.arange(100.0)[:, None], torch.tensor([0] * 90 + [1] * 7 + [2] * 3))


def test_a_balanced_epoch_shows_all_classes_equally_often_and_is_as_long():
    order = draw_order(SKEWED, 3, balanced=True)
    counts = torch.bincount(SKEWED.tensors[1][order])
    assert len(order) == 100
    assert counts.max() - counts.min() <= 1
    shown = torch.bincount(torch.tensor(order), minlength=100)
    assert shown[:90].max() == 1
    assert set(shown[90:97].tolist()) <= {4, 5}
    assert set(shown[97:].tolist()) <= {11, 12}


def test_the_order_depends_on_the_seed_only():
    for balanced in (False, True):
        one, same, other = (draw_order(SKEWED, seed, balanced) for seed in (1, 1, 2))
        torch.rand(1)
        assert one == same != other
    assert sorted(draw_order(SKEWED, 1)) == list(range(100))
    labels = torch.cat([labels for _, labels in make_epoch_loader(SKEWED, 10, 5, balanced=True)])
    assert torch.bincount(labels).min() >= 33


def test_weights_balance_the_classes_and_have_mean_one_over_samples():
    weights = torch.tensor(weigh_classes(SKEWED.tensors[1], 3))
    counts = torch.tensor([90, 7, 3])
    torch.testing.assert_close(weights * counts, torch.full((3,), 100 / 3))
    with pytest.raises(xl.InputError, match=r"classes \[3\] have no training sample"):
        weigh_classes(SKEWED.tensors[1], 4)


def test_labels_are_found_without_reading_samples(tiny_set):
    assert torch.equal(read_labels(tiny_set, "balanced"), tiny_set.labels)
    assert read_labels(SKEWED, "balanced") is SKEWED.tensors[1]
    with pytest.raises(xl.InputError, match=r"balanced: needs the training labels"):
        read_labels(DataLoader(SKEWED, 8), "balanced")
    with pytest.raises(xl.InputError, match="class_weights: needs"):
        read_labels(TensorDataset(torch.zeros(3, 1)), "class_weights")


@pytest.mark.parametrize("odd", [-1, 3, 2**40])
def test_weights_for_labels_that_are_no_class(odd):
    with pytest.raises(xl.InputError, match=r"expected training labels in \[0, 3\)"):
        weigh_classes(torch.tensor([0, 1, 2, odd]), 3)
