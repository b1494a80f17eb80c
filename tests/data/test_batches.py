import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

import exitlens as xl
from exitlens.data.batches import (
    as_batch,
    count_batches,
    draw_order,
    iterate_batches,
    make_epoch_loader,
    read_labels,
    weigh_classes,
)


def test_every_kind_of_source_gives_the_same_batches(tiny_set):
    expected = tiny_set.inputs
    for source in (tiny_set, DataLoader(tiny_set, 10), iter(DataLoader(tiny_set, 5))):
        found = list(iterate_batches(source, 7))
        torch.testing.assert_close(torch.cat([images for images, *_ in found]), expected)
        assert torch.cat([labels for _, labels, _ in found]).tolist() == tiny_set.labels.tolist()
    for unlabelled in (expected, TensorDataset(expected)):
        found = list(iterate_batches(unlabelled, 7))
        assert torch.equal(torch.cat([images for images, *_ in found]), expected)
        assert all(labels is None for _, labels, _ in found)
    assert count_batches(tiny_set, 10) == 4
    assert count_batches(iter([])) is None


def test_bad_sources():
    with pytest.raises(xl.errors.InputError, match="DataLoader"):
        list(iterate_batches(3))
    with pytest.raises(xl.errors.InputError, match="dict"):
        list(iterate_batches([{"image": 1}]))


class Uneven(Dataset):
    """Samples that make no batch, because their inputs or labels differ in shape, or labels are lists."""

    def __init__(self, what):
        self.what = what

    def __len__(self):
        return 4

    def __getitem__(self, i):
        image, label = torch.zeros(3, 8, 8), torch.zeros(8, 8)
        samples = {"inputs": (image[:, i:], 1), "labels": (image, label[i:]), "lists": (image, [1, 0, 1])}
        return (samples | {"none": (image, None), "names": ({"ab"[i % 2]: image}, 1)})[self.what]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("inputs", "data: samples do not make a batch: .* Fix: "),
        ("labels", "data: samples do not make a batch: .* Fix: resize or pad them"),
        ("none", "data: samples do not make a batch: .*NoneType.* Fix: return tensors"),
        ("names", "data: samples do not make a batch: .* Fix: return tensors, numbers or dicts of them with the same names"),
        ("lists", r"expected labels as numbers or one tensor, got list .* Fix: "),
    ],
)
def test_samples_of_several_shapes_are_refused(what, message, workers):
    with pytest.raises(xl.errors.InputError, match=message):
        list(iterate_batches(Uneven(what), 4, workers=workers))
    with pytest.raises(xl.errors.InputError, match=message):
        list(map(as_batch, make_epoch_loader(Uneven(what), 4, 0, workers)))


def test_an_epoch_visits_each_image_once_in_an_order_that_depends_on_the_seed(tiny_set):
    orders = [torch.cat([labels for _, labels in make_epoch_loader(tiny_set, 8, seed)]).tolist() for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(tiny_set.labels.tolist())
    assert len(make_epoch_loader(tiny_set, 5, 0)) == 6  # the incomplete seventh is left out
    assert len(make_epoch_loader(tiny_set, 50, 0)) == 1


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
    one, same, other = (draw_order(SKEWED, seed, balanced=True) for seed in (1, 1, 2))
    assert one == same != other
    assert sorted(draw_order(SKEWED, 1)) == list(range(100))
    labels = torch.cat([labels for _, labels in make_epoch_loader(SKEWED, 10, 5, balanced=True)])
    assert torch.bincount(labels).min() >= 33


def test_weights_balance_the_classes_and_have_mean_one_over_samples():
    weights = torch.tensor(weigh_classes(SKEWED.tensors[1], 3))
    counts = torch.tensor([90, 7, 3])
    torch.testing.assert_close(weights * counts, torch.full((3,), 100 / 3))
    with pytest.raises(xl.errors.InputError, match=r"classes \[3\] have no training sample"):
        weigh_classes(SKEWED.tensors[1], 4)
    for odd in (-1, 3, 2**40):
        with pytest.raises(xl.errors.InputError, match=r"expected training labels in \[0, 3\)"):
            weigh_classes(torch.tensor([0, 1, 2, odd]), 3)


def test_labels_are_found_without_reading_samples(tiny_set):
    assert torch.equal(read_labels(tiny_set, "balanced"), tiny_set.labels)
    assert read_labels(SKEWED, "balanced") is SKEWED.tensors[1]
    with pytest.raises(xl.errors.InputError, match=r"balanced: needs the training labels"):
        read_labels(DataLoader(SKEWED, 8), "balanced")
    with pytest.raises(xl.errors.InputError, match="class_weights: needs"):
        read_labels(TensorDataset(torch.zeros(3, 1)), "class_weights")
