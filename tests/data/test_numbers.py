"""Numbers as labels of files of every kind, and files whose samples have no labels."""

import json

import pytest
import torch
from PIL import Image

import exitlens as xl
from exitlens.data.lines import read_ts
from exitlens.data.rows import Columns
from exitlens.data.sources import open_source
from exitlens.errors import DataError, InputError

COUNT = 40
TS = "@timeStamps false\n@univariate true\n@targetLabel true\n@data\n1,2,3:0.5\n2,3,4:?\n3,4,5:-1e3\n"


def write(path, lines):
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def load(name, split="train", **settings):
    return open_source(name, task="regression", **settings).load(split)


def gather(source):
    return torch.cat(
        [part.labels for part in source.load_splits(("train", "validation", "calibration", "test")).sets.values()]
    )


def test_numbers_of_texts(tmp_path):
    lines = [f"a good lamp {i},{i / 4}" for i in range(COUNT)]
    source = open_source(write(tmp_path / "a.csv", ["text,label", *lines]), task="regression")
    assert torch.equal(gather(source).sort(0).values, torch.arange(COUNT)[:, None] / 4)
    rows = [json.dumps({"text": f"lamp {i}", "wide": i + 0.5, "long": i, "label": "x"}) for i in range(COUNT)]
    two = load(write(tmp_path / "a.jsonl", rows), columns="label=wide|long")
    assert (two.classes, two.task, two.labels.dtype) == (("wide", "long"), "regression", torch.float32)
    assert torch.equal(two.labels[:, 0] - two.labels[:, 1], torch.full((28,), 0.5))
    notes = open_source(str(tmp_path / "a.jsonl"), task="regression", columns="label=wide|long").load_splits(["test"]).notes
    assert "test: 4 texts with 2 numbers" in notes


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("", "no label"),
        ("n/a", "label: expected 1 finite number(s), got 'n/a'"),
        ("inf", "label: expected 1 finite number(s), got 'inf'"),
        ("nan", "label: expected 1 finite number(s), got 'nan'"),
        ("1e39", "label: expected 1 finite number(s), got '1e39'"),  # not in float32
        ("1;2", "label: expected 1 finite number(s), got '1;2'"),
    ],
)
def test_a_value_that_is_no_number_is_told_with_file_and_row(tmp_path, value, words):
    lines = ["text,label", *(f"lamp,{i}" for i in range(COUNT))]
    lines[2] = f"lamp,{value}"
    path = write(tmp_path / "a.csv", lines)
    with pytest.raises(DataError) as error:
        load(path)
    assert f"a.csv:3: {words}" in str(error.value)
    kept = open_source(path, task="regression").load_splits(["train", "validation", "calibration", "test"], skip_bad=True)
    assert sum(map(len, kept.sets.values())) == COUNT - 1


def test_numbers_of_series_and_features(tmp_path):
    lines = [f"{i} {i + 1} {i + 2},{i / 2}" for i in range(COUNT)]
    series = load(write(tmp_path / "a.csv", ["signal,price", *lines]))
    assert (series.classes, tuple(series.shape)) == (("price",), (1, 3))
    assert torch.allclose(series.values[:, 0, 0], 2 * series.labels[:, 0])
    lines = [f"{i},{-i}.5,{i / 2}" for i in range(COUNT)]
    with pytest.raises(DataError, match=r"several columns could hold the label \(a, b, c\)"):
        load(write(tmp_path / "b.csv", ["a,b,c", *lines]))
    vectors = load(str(tmp_path / "b.csv"), columns="label=c")
    assert vectors.preprocess.names == ("a", "b")
    (tmp_path / "a.ts").write_text(TS)
    rows = read_ts(tmp_path / "a.ts", Columns("series", ("series",), ("label",), task="regression"))
    assert rows.numbers.flatten().tolist()[::2] == [0.5, -1000]
    with pytest.raises(DataError, match=r"a.ts:6: label: expected 1 finite number\(s\), got '\?'"):
        load(str(tmp_path / "a.ts"))
    (tmp_path / "a.ts").write_text(TS.replace("@targetLabel", "@classLabel"))
    with pytest.raises(DataError, match="has no numbers: expected @targetLabel true"):
        load(str(tmp_path / "a.ts"))


@pytest.mark.slow
def test_numbers_of_images(tmp_path):
    pytest.importorskip("datasets")
    for i in range(COUNT):
        Image.new("L", (8, 8), 6 * i).save(tmp_path / f"{i:02}.png")
    write(tmp_path / "metadata.csv", ["file_name,age", *(f"{i:02}.png,{6 * i}.0" for i in range(COUNT))])
    held = load(str(tmp_path), size=8).load()
    assert isinstance(held, xl.data.ImageSet)
    assert torch.equal(held.images[:, 0, 0, 0].float(), held.labels[:, 0])
    lines = ["file_name,age", *(f"{i:02}.png,{i}" for i in range(COUNT - 1)), f"{COUNT - 1:02}.png,"]
    write(tmp_path / "metadata.csv", lines)
    with pytest.raises(DataError, match=rf"{COUNT - 1}: no label"):
        load(str(tmp_path), size=8)


def test_samples_without_labels(tmp_path):
    lines = [f"a good lamp {i}" for i in range(COUNT)]
    for path in (write(tmp_path / "a.txt", lines), write(tmp_path / "a.csv", ["text", *lines])):
        train = open_source(path, task="embedding").load("train")
        assert (train.labels.shape, train.classes, train.task) == ((28, 0), (), "embedding")
        assert train[0][1].shape == (0,)
    with pytest.raises(DataError, match="is not a file of texts"):
        open_source(str(tmp_path / "a.txt")).load("train")
    series = write(tmp_path / "b.csv", ["signal,label", *(f"{i} 2 3,{i}" for i in range(COUNT))])
    assert open_source(series, task="embedding").load("train").shape == (1, 3)


def test_folders_and_generated_data_have_none(folder):
    with pytest.raises(
        InputError, match=r"one class for an image, its folder. Fix: for several labels or numbers give a table"
    ):
        load(str(folder))
    with pytest.raises(InputError, match="they are for data from files"):
        load("scenes")


def test_sets_in_memory():
    values, scaling = torch.randn(6, 2), xl.data.VectorPreprocess((0.0, 0.0), (1.0, 1.0))
    prices = xl.data.ArraySet(values, torch.rand(6), ("price",), scaling)
    assert (prices.task, prices.labels.shape) == ("regression", (6,))
    assert [len(part) for part in xl.data.split_set(prices, (0.5, 0.5))] == [3, 3]
    assert xl.data.ArraySet(values, torch.empty(6, 0), (), scaling).task == "embedding"
    for labels in (torch.rand(6, 2), torch.full((6,), torch.nan)):
        with pytest.raises(InputError, match="labels: expected"):
            xl.data.ArraySet(values, labels, ("price",), scaling)
