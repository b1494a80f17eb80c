import pytest
import torch

import exitlens as xl
from exitlens.data.formats.labelled import Rows, make_sets
from tests.data.formats.conftest import PREPROCESS


class _Plain:
    """A reader of three grey levels."""

    def __init__(self, preprocess):
        self._channels = len(preprocess.mean)

    def __len__(self):
        return 3

    def read(self, index):
        return torch.full((self._channels, 8, 8), 10 * index, dtype=torch.uint8)

    def name(self, index):
        return f"row {index}"


def _rows(labels=("a", "b", "a"), **more):
    return Rows(name=lambda i: f"row {i}", labels=labels, **({"images": _Plain} | more))


def test_images_labels_and_groups_stay_together():
    parts = make_sets({"x": _rows(groups=["g", "f", "g"])}, "it", PREPROCESS)
    data = parts.sets["x"]
    assert (data.classes, data.labels.tolist(), data.groups.tolist()) == (("a", "b"), [0, 1, 0], [1, 0, 1])
    assert parts.group_names == ("f", "g")
    assert data.load().images[:, 0, 0, 0].tolist() == [0, 10, 20]


def test_rows_that_miss_something_are_left_out_or_named():
    rows = {"x": _rows(("a", None, "b"), groups=["g", "g", "f"])}
    with pytest.raises(xl.DataError, match=r"1 of 3 rows cannot be read[^#]*row 1: no label"):
        make_sets(rows, "it", PREPROCESS)
    data = make_sets(rows, "it", PREPROCESS, skip_bad=True).sets["x"]
    assert data.load().images[:, 0, 0, 0].tolist() == [0, 20]
    assert data.labels.tolist() == [0, 1]
    assert data.groups.tolist() == [1, 0]
    with pytest.raises(xl.DataError, match="row 2: no text"):
        make_sets({"x": _rows(images=None, texts=["one", "two", " "])}, "it", PREPROCESS)
    texts = make_sets({"x": _rows(images=None, texts=[" one", "two", "three"])}, "it", PREPROCESS).sets["x"]
    assert texts.texts == ["one", "two", "three"]


def test_classes_of_all_parts_and_of_an_existing_network():
    parts = {"train": _rows(), "test": _rows(("c", "a", "a"))}
    assert make_sets(parts, "it", PREPROCESS).sets["train"].classes == ("a", "b", "c")
    assert make_sets(parts, "it", PREPROCESS, known=("c", "b", "a")).sets["test"].labels.tolist() == [0, 2, 2]
    with pytest.raises(xl.DataError, match="it has the class 'c', the network has not"):
        make_sets(parts, "it", PREPROCESS, classes=("a", "b"))


def test_a_column_says_the_parts():
    parts = make_sets({"": _rows(splits=["val", "train", "val"])}, "it", PREPROCESS)
    assert {name: part.labels.tolist() for name, part in parts.sets.items()} == {"train": [1], "val": [0, 0]}
    with pytest.raises(xl.DataError, match="split_by: it has the split 'other'"):
        make_sets({"": _rows(splits=["other", "train", "val"])}, "it", PREPROCESS)


def test_parts_without_labels():
    parts = make_sets({"train": _rows(), "test": _rows((None, None, None))}, "it", PREPROCESS)
    assert (tuple(parts.sets), parts.unlabelled) == (("train",), ("test",))
    with pytest.raises(xl.DataError, match="has no labels"):
        make_sets({"test": _rows((None, None, None))}, "it", PREPROCESS)
