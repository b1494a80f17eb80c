import pytest
import torch
from torch.utils.data import DataLoader

import exitlens as xl
from exitlens.data.batches import batches, count_batches, make_epoch_loader


def test_every_kind_of_source_gives_the_same_batches(tiny_set):
    expected = tiny_set.inputs
    for source in (tiny_set, DataLoader(tiny_set, 10), iter(DataLoader(tiny_set, 5))):
        found = list(batches(source, 7))
        torch.testing.assert_close(torch.cat([images for images, _ in found]), expected)
        assert torch.cat([labels for _, labels in found]).tolist() == tiny_set.labels.tolist()
    assert all(labels is None for _, labels in batches(expected, 7))
    assert count_batches(tiny_set, 10) == 4
    assert count_batches(iter([])) is None


def test_bad_sources():
    with pytest.raises(xl.InputError, match="DataLoader"):
        list(batches(3))
    with pytest.raises(xl.InputError, match="dict"):
        list(batches([{"image": 1}]))


def test_an_epoch_visits_each_image_once_in_an_order_that_depends_on_the_seed(tiny_set):
    orders = [torch.cat([labels for _, labels in make_epoch_loader(tiny_set, 8, seed)]).tolist() for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(tiny_set.labels.tolist())
    assert len(make_epoch_loader(tiny_set, 5, 0)) == 6  # the incomplete seventh is left out
    assert len(make_epoch_loader(tiny_set, 50, 0)) == 1


def test_image_set_checks_and_subsets(tiny_set):
    part = tiny_set.subset(torch.tensor([3, 1]))
    assert torch.equal(part.images[0], tiny_set.images[3])
    assert torch.equal(part.masks[1], tiny_set.masks[1])
    image, label = tiny_set[3]
    torch.testing.assert_close(image, tiny_set.inputs[3])
    assert label == tiny_set.labels[3]
    assert len(tiny_set.first(100)) == 32
    torch.testing.assert_close(
        tiny_set.preprocess.restore(tiny_set.inputs), tiny_set.images.float() / 255, atol=1e-6, rtol=0
    )
    with pytest.raises(xl.InputError, match="uint8"):
        xl.ImageSet(tiny_set.inputs, tiny_set.labels, ("a",))
    for labels, message in ((tiny_set.labels + 1, r"\[0, 4\)"), (tiny_set.labels.float(), "integers")):
        with pytest.raises(xl.InputError, match=message):
            xl.ImageSet(tiny_set.images, labels, tiny_set.classes)
    with pytest.raises(xl.InputError, match="channels"):
        xl.ImageSet(tiny_set.images, tiny_set.labels, tiny_set.classes, preprocess=xl.Preprocess((16, 16), (0.5,), (0.2,)))
    with pytest.raises(xl.InputError, match="one per image"):
        xl.ImageSet(tiny_set.images, tiny_set.labels[:3], tiny_set.classes)


def test_preprocess_round_trip():
    values = xl.Preprocess((8, 9), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert xl.Preprocess.from_dict(values.to_dict()) == values
    for bad in (((0, 8), (0.5,), (0.5,)), ((8, 8), (0.5,), (0.0,)), ((8, 8), (0.5, 0.5), (0.2, 0.2))):
        with pytest.raises(xl.InputError, match="expected"):
            xl.Preprocess(*bad)
    with pytest.raises(xl.InputError, match="uint8"):
        values.normalise(torch.ones(3, 8, 9, dtype=torch.int64))
    with pytest.raises(xl.InputError, match="pixels"):
        values.normalise(torch.ones(1, 8, 9))
