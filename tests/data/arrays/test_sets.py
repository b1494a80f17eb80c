import pickle

import pytest
import torch

import exitlens as xl
from exitlens.data.arrays.sets import find_kind
from exitlens.data.batches import iterate_batches, make_epoch_loader
from exitlens.modalities import SERIES, VECTOR, VOLUME

OWN = xl.SeriesPreprocess((1.0, 2.0), (2.0, 4.0))
CLASSES = ("even", "odd")


class Ramps:
    """A reader of series that count up from their number, some of which are bad."""

    def __init__(self, count, bad=()):
        self.count, self.bad = count, bad

    def __len__(self):
        return self.count

    def name(self, index):
        return f"ramp {index}"

    def read(self, index):
        if index in self.bad:
            raise xl.DataError(f"ramp {index}: damaged")
        return index + torch.arange(10.0).view(2, 5)


@pytest.fixture
def held():
    values = torch.stack([Ramps(40).read(i) for i in range(40)])
    masks = torch.zeros(40, 5, dtype=torch.bool)
    masks[:, 2] = True
    return xl.ArraySet(values, torch.arange(40) % 2, CLASSES, OWN, masks, torch.arange(40) // 4)


def make_lazy(**how):
    return xl.LazyArrays(Ramps(40, **how), torch.arange(40) % 2, CLASSES, OWN, (2, 5), torch.arange(40) // 4)


def test_kinds_are_those_of_their_preprocessing():
    assert find_kind(OWN) is SERIES
    assert find_kind(xl.VolumePreprocess((0.0,), (1.0,), (1, 1, 1))) is VOLUME
    assert find_kind(xl.VectorPreprocess((0.0,), (1.0,))) is VECTOR
    with pytest.raises(xl.InputError, match="preprocess: expected"):
        find_kind(xl.Preprocess((8, 8)))


def test_samples_in_memory(held):
    assert (len(held), held.modality) == (40, SERIES)
    sample, label = held[3]
    torch.testing.assert_close(sample, torch.tensor([[1.0, 1.5, 2.0, 2.5, 3.0], [1.5, 1.75, 2.0, 2.25, 2.5]]))
    assert label == 1
    part = held.subset(torch.tensor([7, 3]))
    assert (part.labels.tolist(), part.groups.tolist(), part.masks.shape) == ([1, 1], [1, 0], (2, 5))
    assert part.inputs.equal(held.inputs[[7, 3]])
    assert len(held.first(100)) == 40
    again = held.scaled(xl.SeriesPreprocess((0.0,) * 2, (1.0,) * 2))
    assert again.inputs.equal(held.values)
    assert held.preprocess == OWN


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


def test_bad_samples_are_named_or_left_out():
    lazy = make_lazy(bad=(3,))
    with pytest.raises(xl.DataError, match="data: ramp 3: damaged"):
        lazy.load()
    lazy.skip_bad = True
    assert len(lazy.load()) == 39
    assert lazy.bad == ("ramp 3: damaged",)


def test_a_million_samples_are_decoded_a_few_at_a_time():
    volume = xl.VolumePreprocess((0.0,), (1.0,), (200, 200, 200))
    data = xl.LazyArrays(Ramps(4), torch.zeros(4).long(), CLASSES, volume, (1, 200, 200, 200))
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
        ({"labels": torch.zeros(3).long()}, "labels: expected 4, one per series"),
        ({"groups": torch.zeros(3).long()}, r"groups: expected \(4,\)"),
    ],
)
def test_what_does_not_fit(change, message):
    whole = {"values": torch.zeros(4, 2, 5), "labels": torch.zeros(4).long(), "classes": CLASSES, "preprocess": OWN}
    with pytest.raises(xl.InputError, match=message):
        xl.ArraySet(**(whole | change))


def test_a_reader_of_another_shape():
    with pytest.raises(xl.InputError, match=r"shape: expected \(2,T\) of series"):
        xl.LazyArrays(Ramps(4), torch.zeros(4).long(), CLASSES, OWN, (3, 5))
    data = xl.LazyArrays(Ramps(4), torch.zeros(4).long(), CLASSES, OWN, (2, 6))
    with pytest.raises(xl.InputError, match=r"\(2, 6\) float32 of ramp 0, got \(2, 5\)"):
        data.load()
