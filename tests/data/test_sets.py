import pickle

import numpy as np
import pytest
import torch

import exitlens as xl
from exitlens.data.batches import iterate_batches, make_epoch_loader
from exitlens.data.sets import measure_scaling
from exitlens.errors import DataError, InputError
from exitlens.modalities import SERIES

OWN = xl.data.SeriesPreprocess((1.0, 2.0), (2.0, 4.0))
CLASSES = ("even", "odd")


class Ramps:
    """A reader of series that count up from their number, some of which are bad; it remembers what it read."""

    def __init__(self, count, bad=()):
        self.count, self.bad, self.seen = count, bad, []

    def __len__(self):
        return self.count

    def name(self, index):
        return f"ramp {index}"

    def read(self, index):
        self.seen.append(index)
        if index in self.bad:
            raise DataError(f"ramp {index}: damaged")
        return index + torch.arange(10.0).view(2, 5)


@pytest.fixture
def held():
    values = torch.stack([Ramps(40).read(i) for i in range(40)])
    masks = torch.zeros(40, 5, dtype=torch.bool)
    masks[:, 2] = True
    return xl.data.ArraySet(values, torch.arange(40) % 2, CLASSES, OWN, masks, torch.arange(40) // 4)


def make_lazy(**how):
    return xl.data.LazySet(Ramps(40, **how), torch.arange(40) % 2, CLASSES, OWN, torch.arange(40) // 4)


def test_samples_in_memory(held):
    assert (len(held), held.modality) == (40, SERIES)
    sample, label = held[3]
    torch.testing.assert_close(sample, torch.tensor([[1.0, 1.5, 2.0, 2.5, 3.0], [1.5, 1.75, 2.0, 2.25, 2.5]]))
    assert label == 1
    part = held.subset(torch.tensor([7, 3]))
    assert (part.labels.tolist(), part.groups.tolist(), part.masks.shape) == ([1, 1], [1, 0], (2, 5))
    assert part.inputs.equal(held.inputs[[7, 3]])
    assert len(held.first(100)) == 40
    again = held.scaled(xl.data.SeriesPreprocess((0.0,) * 2, (1.0,) * 2))
    assert again.inputs.equal(held.values)
    assert held.preprocess == OWN


@pytest.mark.slow
def test_lazy_samples_are_the_same_whatever_the_number_of_processes(held):
    lazy = make_lazy()
    assert (lazy.modality, lazy.shape) == (SERIES, (2, 5))
    assert lazy.inputs.equal(held.inputs)
    assert lazy[39][0].equal(held[39][0])
    assert lazy[-1][0].equal(held[39][0])
    assert lazy.subset(torch.tensor([7, 3])).load().groups.tolist() == [1, 0]
    assert pickle.loads(pickle.dumps(lazy.first(3))).inputs.equal(held.first(3).inputs)
    for workers in (0, 2):
        for one, other in zip(iterate_batches(lazy, 16, workers=workers), iterate_batches(held, 16), strict=True):
            assert all(map(torch.equal, one, other))
        epochs = [make_epoch_loader(data, 6, seed=3, workers=workers) for data in (lazy, held)]
        for batch, (inputs, labels) in zip(*epochs, strict=True):
            assert torch.equal(batch.inputs, inputs)
            assert torch.equal(batch.labels, labels)


def test_nothing_is_read_before_it_is_asked_for():
    lazy = make_lazy()
    lazy.reader.seen.clear()  # the length is that of the first
    part = lazy.subset(torch.tensor([7, 3, 30])).subset(torch.tensor([2, 0]))
    assert (len(part), part.labels.tolist(), part.groups.tolist(), part.name(0)) == (2, [0, 1], [7, 1], "ramp 30")
    assert lazy.reader.seen == []
    assert part[1][0].equal(OWN.normalise(Ramps(8).read(7)))
    assert lazy.reader.seen == [7]
    for name in ("labels", "groups"):
        values = {"labels": torch.zeros(3).long(), "classes": CLASSES, "preprocess": OWN, name: torch.zeros(2).long()}
        with pytest.raises(InputError, match=f"{name}: expected"):
            xl.data.LazySet(Ramps(3), **values)


def test_bad_samples_are_named_or_left_out():
    lazy = make_lazy(bad=(3,))
    with pytest.raises(DataError, match="data: ramp 3: damaged"):
        lazy.load()
    lazy.skip_bad = True
    assert len(lazy.load()) == 39
    assert lazy.bad == ("ramp 3: damaged",)


def test_a_million_samples_are_decoded_a_few_at_a_time():
    volume = xl.data.VolumePreprocess((0.0,), (1.0,), (200, 200, 200))
    data = xl.data.LazySet(Ramps(4), torch.zeros(4).long(), CLASSES, volume)
    assert data.samples_at_once == 2
    assert make_lazy().samples_at_once == 64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": torch.zeros(4, 3, 5)}, r"values: expected \(N,2,T\) of series, got \(N,3,5\)"),
        ({"values": torch.zeros(4, 2)}, "values: expected"),
        ({"values": torch.zeros(4, 2, 5).double()}, "values: expected float32, got torch.float64"),
        ({"values": torch.full((4, 2, 5), torch.nan)}, "values: series 0 has NaN"),
        ({"values": [1.0]}, "values: expected Tensor"),
        ({"masks": torch.zeros(4, 4, dtype=torch.bool)}, r"masks: expected \(4, 5\) bool, got \(4, 4\)"),
        ({"labels": torch.zeros(3).long()}, r"labels: expected \(4,\) integers, got \(3,\)"),
        ({"labels": torch.zeros(4)}, "labels: expected .* integers"),
        ({"labels": torch.tensor([0, 1, 2, 0])}, r"labels: expected values in \[0, 2\), got 0 to 2"),
        ({"labels": [0, 1, 0, 1]}, "labels: expected Tensor"),
        ({"labels": torch.zeros(4, 1).long(), "classes": ("a",)}, "classes: expected the names of 2 labels or more"),
        ({"groups": torch.zeros(3).long()}, r"groups: expected \(4,\)"),
    ],
)
def test_what_does_not_fit(change, message):
    whole = {"values": torch.zeros(4, 2, 5), "labels": torch.zeros(4).long(), "classes": CLASSES, "preprocess": OWN}
    with pytest.raises(InputError, match=message):
        xl.data.ArraySet(**(whole | change))


def test_the_shape_of_samples_is_known_or_that_of_the_first():
    class Shaped(Ramps):
        shape = (2, 6)

    labels = torch.zeros(4).long()
    assert xl.data.LazySet(Ramps(4), labels, CLASSES, OWN).shape == (2, 5)
    assert xl.data.LazySet(Shaped(4), labels, CLASSES, OWN).shape == (2, 6)
    assert xl.data.LazySet(Ramps(0), labels[:0], CLASSES, OWN).shape == (2, 0)
    cut = xl.data.SeriesPreprocess((1.0, 2.0), (2.0, 4.0), length=6)
    with pytest.raises(InputError, match=r"\(2, 6\) float32 of ramp 0, got \(2, 5\)"):
        xl.data.LazySet(Ramps(4), labels, CLASSES, cut).load()
    assert xl.data.LazySet(Ramps(4), labels, CLASSES, xl.data.VectorPreprocess((0.0,) * 3, (1.0,) * 3)).shape == (3,)
    with pytest.raises(InputError, match=r"reader: expected \(1,T\) of series, got \(2,5\)"):
        xl.data.LazySet(Ramps(4), labels, CLASSES, xl.data.SeriesPreprocess((0.0,), (1.0,)))
    with pytest.raises(InputError, match="preprocess: expected"):
        xl.data.LazySet(Ramps(4), labels, CLASSES, None)


def test_image_set_checks_and_subsets(tiny_set):
    part = tiny_set.subset(torch.tensor([3, 1]))
    assert torch.equal(part.images[0], tiny_set.images[3])
    assert torch.equal(part.masks[1], tiny_set.masks[1])
    image, label = tiny_set[3]
    torch.testing.assert_close(image, tiny_set.inputs[3])
    assert label == tiny_set.labels[3]
    assert len(tiny_set.first(100)) == 32
    restored = tiny_set.preprocess.restore(tiny_set.inputs)
    torch.testing.assert_close(restored, tiny_set.images.float() / 255, atol=1e-6, rtol=0)
    with pytest.raises(InputError, match="uint8"):
        xl.data.ImageSet(tiny_set.inputs, tiny_set.labels, ("a",))
    grey = xl.data.Preprocess((16, 16), (0.5,), (0.2,))
    with pytest.raises(InputError, match="channels"):
        xl.data.ImageSet(tiny_set.images, tiny_set.labels, tiny_set.classes, preprocess=grey)
    with pytest.raises(InputError, match=r"masks: expected \(32, 16, 16\) bool"):
        xl.data.ImageSet(tiny_set.images, tiny_set.labels, tiny_set.classes, tiny_set.masks[:3])


def test_each_channel_has_its_own_scale():
    rng = torch.Generator().manual_seed(0)
    values = torch.randn(3000, 2, 7, generator=rng) * torch.tensor([[[3.0], [0.01]]]) + torch.tensor([[[5.0], [1e4]]])
    unscaled = xl.data.SeriesPreprocess((0.0,) * 2, (1.0,) * 2, names=("x", "y"))
    found = measure_scaling(xl.data.ArraySet(values, torch.zeros(3000).long(), CLASSES, unscaled))
    expected = values.double().transpose(0, 1).flatten(1)
    np.testing.assert_allclose(found.mean, expected.mean(1), rtol=1e-6)
    np.testing.assert_allclose(found.std, expected.std(1, correction=0), rtol=1e-4)
    assert found.names == ("x", "y")


def test_vectors_and_constant_channels():
    unscaled = xl.data.VectorPreprocess((0.0, 0.0), (1.0, 1.0))
    vectors = xl.data.ArraySet(torch.tensor([[1.0, 7.0], [3.0, 7.0]]), torch.tensor([0, 1]), ("a", "b"), unscaled)
    found = measure_scaling(vectors)
    assert (found.mean, found.std) == ((2.0, 7.0), (1.0, 1.0))
    with pytest.raises(DataError, match="the training split is empty"):
        measure_scaling(vectors.first(0))


def test_files_are_read_in_batches(series_folder, monkeypatch):
    data = xl.data.load_folder(series_folder, xl.data.SeriesPreprocess((0.0,) * 2, (1.0,) * 2))
    found, expected = measure_scaling(data), measure_scaling(data.load())
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-9)
    np.testing.assert_allclose(found.std, expected.std, rtol=1e-9)
    monkeypatch.setattr("exitlens.data.sets.MEASURED", 5)
    assert measure_scaling(data) != found
    assert measure_scaling(data) == measure_scaling(data)
    for path in series_folder.rglob("*.npy"):
        if path.stem.endswith(("0", "1")):
            path.write_bytes(b"")
    data.skip_bad = True
    monkeypatch.setattr("exitlens.data.sets.MEASURED", 100)
    assert measure_scaling(data).mean == measure_scaling(data.load()).mean
    for path in series_folder.rglob("*.npy"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="24 of 24 files cannot be read"):
        measure_scaling(data)


def test_images_with_the_classes_of_pixels():
    pixels, labels = torch.zeros(3, 3, 4, 5, dtype=torch.uint8), torch.randint(0, 2, (3, 4, 5))
    labels[0, 0, 0] = 255
    data = xl.data.ImageSet(pixels, labels, ("sky", "sea"))
    assert data.labels.dtype == torch.uint8
    assert torch.equal(data[1][1], labels[1].to(torch.uint8))
    assert torch.equal(data.subset(torch.tensor([2, 0])).labels.long(), labels[[2, 0]])
    with pytest.raises(
        xl.errors.InputError, match=r"labels: expected \(3, 4, 5\), of the size of the images, got \(3, 5, 4\)"
    ):
        xl.data.ImageSet(pixels, labels.mT, ("sky", "sea"))
    with pytest.raises(xl.errors.InputError, match=r"labels: expected classes in \[0, 2\)"):
        xl.data.ImageSet(pixels, labels + 1, ("sky", "sea"))
