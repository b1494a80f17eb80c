import pickle

import pytest
import torch

import exitlens as xl
from exitlens.data.batches import iterate_batches, make_epoch_loader
from exitlens.data.lazy import LazyImages
from tests.data.conftest import PREPROCESS


class Squares:
    """A reader of grey squares that counts what it reads."""

    def __init__(self, count):
        self.count, self.read_so_far = count, []

    def __len__(self):
        return self.count

    def read(self, index):
        self.read_so_far.append(index)
        return torch.full((3, 16, 16), index, dtype=torch.uint8)

    def name(self, index):
        return f"squares:{index}"


@pytest.fixture
def squares():
    groups = torch.arange(40) // 4
    return LazyImages(Squares(40), torch.arange(40) % 2, ("even", "odd"), PREPROCESS, groups)


def test_nothing_is_read_before_it_is_asked_for(squares):
    part = squares.subset(torch.tensor([7, 3, 30])).subset(torch.tensor([2, 0]))
    assert (len(part), part.labels.tolist(), part.groups.tolist()) == (2, [0, 1], [7, 1])
    assert part.name(0) == "squares:30"
    assert squares.reader.read_so_far == []
    image, label = part[1]
    torch.testing.assert_close(image, PREPROCESS.normalise(torch.full((3, 16, 16), 7, dtype=torch.uint8)))
    assert label == 1
    assert squares.reader.read_so_far == [7]
    assert part.load().groups.tolist() == [7, 1]
    assert part.first(1).inputs.shape == (1, 3, 16, 16)


def test_batches_have_labels_and_groups(squares):
    batches = list(iterate_batches(squares, 16))
    assert [len(b.inputs) for b in batches] == [16, 16, 8]
    assert torch.equal(torch.cat([b.labels for b in batches]), squares.labels)
    assert torch.equal(torch.cat([b.groups for b in batches]), squares.groups)
    in_memory = list(iterate_batches(squares.load(), 16))
    for one, other in zip(batches, in_memory, strict=True):
        assert all(map(torch.equal, one, other))


def test_an_epoch_is_the_same_as_in_memory_whatever_the_number_of_processes(squares):
    whole = squares.load()
    expected = list(make_epoch_loader(whole, 6, seed=3))
    for workers in (0, 1, 3):
        loader = make_epoch_loader(squares, 6, seed=3, workers=workers)
        assert len(loader) == 6
        for batch, (images, labels) in zip(loader, expected, strict=True):
            assert torch.equal(batch.inputs, images)
            assert torch.equal(batch.labels, labels)


def test_sets_can_be_pickled(squares):
    again = pickle.loads(pickle.dumps(squares.first(3)))
    assert torch.equal(again.inputs, squares.first(3).inputs)


def test_arguments_that_do_not_fit():
    with pytest.raises(xl.InputError, match="labels: expected 3"):
        LazyImages(Squares(3), torch.zeros(2).long(), ("a", "b"), PREPROCESS)
    with pytest.raises(xl.InputError, match=r"groups: expected \(3,\)"):
        LazyImages(Squares(3), torch.zeros(3).long(), ("a", "b"), PREPROCESS, torch.zeros(2).long())
    data = LazyImages(Squares(3), torch.zeros(3).long(), ("a", "b"), xl.Preprocess((8, 8)))
    with pytest.raises(xl.InputError, match=r"\(3, 8, 8\) uint8 of squares:0, got \(3, 16, 16\)"):
        data.load()
