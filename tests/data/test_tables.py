import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from exitlens.data.batches import iterate_batches
from exitlens.data.rows import ColumnChoice, Columns
from exitlens.data.sources import open_source
from exitlens.data.splits import SPLITS
from exitlens.data.tables import open_table, to_word
from exitlens.errors import DataError
from tests.data.conftest import SMALL as PREPROCESS
from tests.data.conftest import check_refused, encode, read_numbers


def _write(kind, table, folder):
    folder.mkdir()
    if kind == "parquet":
        table.to_parquet(str(folder / "x.parquet"))
        return folder / "x.parquet"
    table.save_to_disk(str(folder / "x"))
    return folder / "x" if kind == "saved" else next((folder / "x").glob("*.arrow")).rename(folder / "x.arrow")


@pytest.mark.parametrize("kind", ["saved", "parquet", "arrow"])
def test_every_format_gives_the_same_splits(kind, make_table, tmp_path):
    source = open_source(str(_write(kind, make_table(), tmp_path / "data")), size=8, seed=1)
    assert source.format == kind
    assert source.modality.name == "image"
    parts = {split: source.load(split) for split in SPLITS}
    numbers = {split: read_numbers(part) for split, part in parts.items()}
    assert sorted(n for found in numbers.values() for n in found) == list(range(40))
    assert [len(numbers[split]) for split in SPLITS] == [28, 4, 4, 4]
    assert all(part.classes == ("ant", "bee") for part in parts.values())
    assert parts["train"].labels.tolist() == [n % 2 for n in numbers["train"]]
    assert read_numbers(source.load("test")) == numbers["test"]
    reader = pickle.loads(pickle.dumps(parts["test"].reader))
    assert torch.equal(reader.read(3), parts["test"].reader.read(3))


def test_groups_by_column_and_by_file_name(make_table, tmp_path):
    path = str(_write("parquet", make_table(80), tmp_path / "data"))
    for group_by in ("patient", r"^(p\d+)_"):
        source = open_source(path, size=8, group_by=group_by)
        loaded = source.load_splits(SPLITS)
        groups = [set(part.groups.tolist()) for part in loaded.sets.values()]
        assert sum(map(len, groups)) == len(set.union(*groups)) == 20
        assert [len(found) for found in groups] == [14, 2, 2, 2]
        assert all((part.groups.bincount() % 4 == 0).all() for part in loaded.sets.values())
        assert loaded.notes[1] == "images from 'image', labels from 'label'"
        counts = "20, of which 14 in train, 2 in validation, 2 in calibration, 2 in test"
        assert loaded.notes[2] == f"groups by '{group_by}': {counts}"
    check_refused(path, DataError, r"group_by: .* has no column 'patients'.*Did you mean 'patient'", group_by="patients")
    check_refused(path, DataError, "finds no group in 80 of 80", group_by=r"q\d+")


def test_named_parts_stay_and_others_are_cut_from_train(make_table, hf, tmp_path):
    parts = hf.DatasetDict({"train": make_table(40), "test": make_table(10, 40), "extra": make_table(10, 60)})
    parts.save_to_disk(str(tmp_path / "saved"))
    for split, part in parts.items():
        (tmp_path / "files").mkdir(exist_ok=True)
        part.to_parquet(str(tmp_path / "files" / f"{split}-00000-of-00001.parquet"))
    (tmp_path / "files" / "extra-00000-of-00001.parquet").unlink()
    for name in ("saved", "files"):
        loaded = open_source(str(tmp_path / name), size=8).load_splits(SPLITS)
        assert read_numbers(loaded.sets["test"]) == list(range(40, 50))
        assert sorted(n for split in SPLITS[:3] for n in read_numbers(loaded.sets[split])) == list(range(40))
        assert loaded.notes[0].startswith("splits: test: all of 'test'; cut from 'train' by exitlens: 78% train")
    shared = hf.DatasetDict({"train": make_table(40), "test": make_table(10, 38)})
    shared.save_to_disk(str(tmp_path / "shared"))
    check_refused(tmp_path / "shared", DataError, "has the group 'p9' in train and in test", group_by="patient")
    empty = hf.DatasetDict({"train": make_table(40), "test": make_table(0)})
    empty.save_to_disk(str(tmp_path / "empty"))
    check_refused(tmp_path / "empty", DataError, "a part has no rows")  # datasets cannot open it
    make_table(0).to_parquet(str(tmp_path / "files" / "test-00000-of-00001.parquet"))
    check_refused(tmp_path / "files", DataError, "a part has no rows")


def test_texts_of_a_table(hf, tmp_path):
    pytest.importorskip("tokenizers")
    values = {"review": [f"number{i} is {i % 2}" for i in range(40)], "stars": [i % 2 for i in range(40)]}
    hf.Dataset.from_dict(values | {"author": [f"a{i // 2}" for i in range(40)]}).to_parquet(str(tmp_path / "t.parquet"))
    source = open_source(str(tmp_path / "t.parquet"), size=6, columns="text=review", group_by="author")
    assert source.modality.name == "text"
    train, test = source.load("train"), source.load("test")
    assert train.classes == ("0", "1")
    assert all(int(text[-1]) == label for text, label in zip(test.texts, test.labels, strict=True))
    assert test.inputs["input_ids"].shape == (4, 6)
    assert test.preprocess == train.preprocess
    assert len(set(train.groups.tolist()) & set(test.groups.tolist())) == 0
    with pytest.raises(DataError, match="no file names for a regular expression"):
        open_source(str(tmp_path / "t.parquet"), columns="text=review", group_by=r"a\d").load("train")


def test_rows_without_labels(hf, tmp_path):
    features = hf.Features({"image": hf.Image(), "label": hf.ClassLabel(names=["ant", "bee"])})
    images = [{"bytes": encode(i), "path": None} for i in range(12)]
    labels = [0, 1] * 5 + [-1, None]
    part = hf.Dataset.from_dict({"image": images, "label": labels}, features=features)
    part.to_parquet(str(tmp_path / "some.parquet"))
    source = open_source(str(tmp_path / "some.parquet"), size=8)
    with pytest.raises(DataError, match=r"2 of 12 rows cannot be read.*--skip-bad[^#]*:10: no label"):
        source.load("train")
    assert sum(len(source.load(split, skip_bad=True)) for split in SPLITS) == 10
    hidden = hf.Dataset.from_dict({"image": images[:4], "label": [-1] * 4}, features=features)
    hf.DatasetDict({"train": part.select(range(10)), "test": hidden}).save_to_disk(str(tmp_path / "hidden"))
    loaded = open_source(str(tmp_path / "hidden")).load_splits(["test"])
    assert len(loaded.sets["test"]) > 0
    assert loaded.notes[-1] == "'test' has no labels and is not used"
    hidden.save_to_disk(str(tmp_path / "none"))
    check_refused(tmp_path / "none", DataError, "has no labels")


def test_bad_images_are_named_by_row(hf, tmp_path):
    images = [encode(i, mode) for i, mode in enumerate(["RGB", "L", "RGBA", "P", "1", "CMYK"]) if mode != "CMYK"]
    images += [encode(5, "CMYK", kind="JPEG"), b"no image", encode(7)[:50], b"", None]
    values = {"picture": images, "kind": ["ant", "bee"] * 5, "size": [1.5] * 10}
    hf.Dataset.from_dict(values).to_parquet(str(tmp_path / "x.parquet"))
    table = open_table(str(tmp_path / "x.parquet"), "parquet")
    assert table.find_columns(ColumnChoice()) == Columns("image", ("picture",), ("kind",))
    reader = table.list_rows(table.find_columns(ColumnChoice()))[""].images(PREPROCESS)
    assert [tuple(reader.read(i).shape) for i in range(6)] == [(3, 8, 8)] * 6
    for row in range(6, 10):
        with pytest.raises(DataError, match=rf"x.parquet:{row}: (cannot be read|has no image)"):
            reader.read(row)
    found = open_source(str(tmp_path / "x.parquet"), size=8).load("train", skip_bad=True)
    rows = sum(len(batch.labels) for batch in iterate_batches(found, 4, workers=0))
    assert rows == len(found) - len(found.bad) > 0
    assert all("x.parquet:" in reason for reason in found.bad)


def test_paths_of_images_are_relative_to_the_table(hf, tmp_path):
    (tmp_path / "pictures").mkdir()
    for i in range(8):
        (tmp_path / "pictures" / f"{i}.png").write_bytes(encode(i))
    values = {"file_name": [f"pictures/{i}.png" for i in range(8)], "label": [i % 2 for i in range(8)]}
    hf.Dataset.from_dict(values).to_parquet(str(tmp_path / "x.parquet"))
    source = open_source(str(tmp_path / "x.parquet"), size=8)
    assert sorted(n for split in SPLITS for n in read_numbers(source.load(split))) == list(range(8))
    (tmp_path / "pictures" / "3.png").unlink()
    with pytest.raises(DataError, match=r":3: cannot be read \(FileNotFoundError"):
        [read_numbers(source.load(split)) for split in SPLITS]


def test_a_folder_of_images_with_metadata(hf, tmp_path):
    lines = ["file_name,kind,patient"]
    for i in range(16):
        (tmp_path / f"{i}.png").write_bytes(encode(i))
        lines.append(f"{i}.png,{'ab'[i % 2]},p{i // 2}")
    (tmp_path / "metadata.csv").write_text("\n".join(lines))
    source = open_source(str(tmp_path), size=8, columns="label=kind", group_by="patient")
    assert source.format == "imagefolder"
    found = {split: source.load(split) for split in SPLITS}
    assert sorted(n for part in found.values() for n in read_numbers(part)) == list(range(16))
    assert all(part.classes == ("a", "b") for part in found.values())
    (tmp_path / "metadata.csv").write_text("\n".join(lines).replace("p0", "p1"))
    with pytest.raises(DataError, match="not those of training"):
        source.load("test")


def test_damaged_and_changed_tables(make_table, tmp_path):
    path = Path(_write("parquet", make_table(), tmp_path / "data"))
    source = open_source(str(path))
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    with pytest.raises(DataError, match="not those of training"):
        source.load("train")
    check_refused(path, DataError, r"x.parquet cannot be read as parquet \(")
    saved = _write("saved", make_table(), tmp_path / "other")
    (arrow,) = saved.glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:300])
    check_refused(saved, DataError, "cannot be read as saved")
    make_table(0).to_parquet(str(tmp_path / "none.parquet"))
    check_refused(tmp_path / "none.parquet", DataError, r"none.parquet has no rows|cannot be read as parquet")


def test_the_hub_where_it_cannot_be_reached(hf, monkeypatch):
    def fail(path, config):
        if (path, config) == ("owner/name", "small"):
            raise ConnectionError("Couldn't reach it")
        raise ValueError("no such config")

    monkeypatch.setattr(hf, "load_dataset", fail)
    for name, message in (
        ("owner/name:small", r"is not in the local cache.*save_to_disk\(DIR\)"),
        ("other", r"cannot be loaded from the hub \(ValueError: no such config\)"),
    ):
        with pytest.raises(DataError, match=f"hf:{name} {message}"):
            open_source(f"hf:{name}")


def test_a_data_set_of_the_hub(make_table, hf, monkeypatch):
    parts = hf.DatasetDict({"train": make_table(40), "test": make_table(10, 40)})
    monkeypatch.setattr(hf, "load_dataset", lambda path, config: parts)
    source = open_source("hf:an/example", size=8)
    assert read_numbers(source.load("test")) == list(range(40, 50))
    assert len(source.contents) == 16
    with pytest.raises(DataError, match="not those of training"):
        replace(source, contents="0" * 16).load("test")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((0.125, 3.0, -2, float("nan"), float("inf")), ("0.125", "3", "-2", None, None)),
        (([1], ["b", "a"], [], [None]), ("1", "b;a", "", None)),
    ],
)
def test_values_as_words(values, words):
    assert tuple(map(to_word, values)) == words
