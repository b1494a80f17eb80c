import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import exitlens as xl
from exitlens.data.batches import count_batches, iterate_batches, make_epoch_loader


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
    with pytest.raises(xl.InputError, match="DataLoader"):
        list(iterate_batches(3))
    with pytest.raises(xl.InputError, match="dict"):
        list(iterate_batches([{"image": 1}]))


def test_an_epoch_visits_each_image_once_in_an_order_that_depends_on_the_seed(tiny_set):
    orders = [torch.cat([labels for _, labels in make_epoch_loader(tiny_set, 8, seed)]).tolist() for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(tiny_set.labels.tolist())
    assert len(make_epoch_loader(tiny_set, 5, 0)) == 6  # the incomplete seventh is left out
    assert len(make_epoch_loader(tiny_set, 50, 0)) == 1
