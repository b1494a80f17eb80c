import json

import pytest
import torch

import exitlens as xl
from exitlens.data.formats.reading import Reading, hash_source, read_parts
from exitlens.data.sources import open_source
from exitlens.data.splits import SPLITS
from tests.data.formats.conftest import PREPROCESS, encode


@pytest.fixture
def folder(tmp_path):
    """Four images of each of 12 animals, in two class folders."""
    for i in range(48):
        path = tmp_path / "photos" / ("ant", "bee")[i // 4 % 2] / f"animal{i // 4:02}_{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(i))
    return tmp_path / "photos"


def test_groups_of_a_folder_by_file_names(folder):
    source = open_source(str(folder), size=8, group_by=r"animal(\d+)")
    loaded = source.load_splits(SPLITS)
    assert [len(part.groups.unique()) for part in loaded.sets.values()] == [6, 2, 2, 2]
    groups = [group for part in loaded.sets.values() for group in part.groups.unique().tolist()]
    assert sorted(groups) == list(range(12))
    for part in loaded.sets.values():
        assert all(f"animal{group:02}_" in part.name(i) for i, group in enumerate(part.groups.tolist()))
    assert loaded.notes[1].startswith(r"groups by 'animal(\d+)': 12, of which 6 in train")
    assert loaded.notes[2].startswith("train: 24 images of 2 classes (")
    alone = open_source(str(folder), size=8, group_by=r"(animal.+)").load_splits(SPLITS)
    assert alone.notes[1].endswith("no two samples are in one group")
    assert not torch.equal(source.load("train").labels, open_source(str(folder), size=8).load("train").labels)
    with pytest.raises(xl.DataError, match=r"finds no group in 48 of 48 file names, such as 'ant/animal00_0.png'"):
        open_source(str(folder), group_by=r"bird\d").load("train")
    with pytest.raises(xl.InputError, match="is a folder of class folders, without columns"):
        open_source(str(folder), split_by="fold").load("train")


def test_folders_of_splits(folder, tmp_path):
    for split, start in (("train", 0), ("val", 40)):
        for path in sorted(folder.rglob("*.png")):
            number = int(path.stem.split("_")[1])
            if (number >= 40) == (start == 40):
                target = tmp_path / "split" / split / path.parent.name / path.name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
    source = open_source(str(tmp_path / "split"), size=8, group_by=r"animal(\d+)")
    loaded = source.load_splits(SPLITS)
    assert loaded.sets["validation"].groups.unique().tolist() == [10, 11]
    assert loaded.sets["train"].classes == ("ant", "bee")
    assert loaded.notes[0].startswith("splits: validation: all of 'val'; cut from 'train' by exitlens")
    assert sum(len(part) for part in loaded.sets.values()) == 48
    (tmp_path / "split" / "val" / "ant" / "animal00_99.png").write_bytes(encode(0))
    with pytest.raises(xl.DataError, match=r"has the group '00' in train and in val \(1 group"):
        open_source(str(tmp_path / "split"), group_by=r"animal(\d+)").load("train")


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_groups_and_splits_of_texts(suffix, tmp_path):
    pytest.importorskip("tokenizers")
    rows = [
        {"text": f"words {i}", "label": "ab"[i % 2], "author": f"a{i // 2}", "fold": "dev" if i > 29 else "train"}
        for i in range(40)
    ]
    path = tmp_path / f"x{suffix}"
    if suffix == ".csv":
        lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
        path.write_text("\n".join(lines))
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    source = open_source(str(path), group_by="author")
    groups = [set(source.load(split).groups.tolist()) for split in SPLITS]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 20
    source = open_source(str(path), split_by="fold", columns="text=author,label=label")
    assert source.load("validation").texts == tuple(f"a{i // 2}" for i in range(30, 40))
    with pytest.raises(xl.DataError, match=r"no column 'writer'|40 of 40 rows"):
        open_source(str(path), group_by="writer").load("train")
    with pytest.raises(xl.InputError, match="holds texts: give text=NAME"):
        open_source(str(path), columns="image=text").load("train")


def test_files_of_texts_that_are_named_by_split(tmp_path):
    pytest.importorskip("tokenizers")
    for part, first in (("train", 0), ("dev", 40), ("test", 60)):
        lines = [f"{part} {i},{'ab'[i % 2]},a{i // 2}" for i in range(first, first + 20)]
        (tmp_path / f"{part}.csv").write_text("\n".join(["text,label,author", *lines]))
    source = open_source(str(tmp_path), group_by="author")
    loaded = source.load_splits(SPLITS)
    assert {split: len(part) for split, part in loaded.sets.items()} == {
        "train": 18, "validation": 20, "calibration": 2, "test": 20
    }  # fmt: skip
    assert loaded.notes[0].startswith("splits: validation: all of 'dev'; test: all of 'test'; cut from 'train' by exitlens")
    with pytest.raises(xl.InputError, match=r"split_by: .* has a file for each split \(dev, test, train\)"):
        open_source(str(tmp_path), split_by="author").load("train")
    (tmp_path / "test.csv").write_text("text,label,author\nchanged,a,a99\n")
    with pytest.raises(xl.DataError, match="are not those of training"):
        source.load("test")
    (tmp_path / "test.jsonl").write_text("{}")
    with pytest.raises(xl.DataError, match="two files of one name"):
        open_source(str(tmp_path))


def test_texts_without_a_group_or_split(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("text,label,author\n" + "".join(f"t{i},{'ab'[i % 2]},{'' if i == 3 else i // 2}\n" for i in range(20)))
    with pytest.raises(xl.DataError, match=r"1 of 20 rows cannot be read[^#]*line 5: author: expected"):
        read_parts(str(path), "texts", Reading(group_by="author"), PREPROCESS)
    parts = read_parts(str(path), "texts", Reading(group_by="author"), PREPROCESS, skip_bad=True)
    assert len(parts.sets[""].texts) == 19
    assert len(parts.group_names) == 10


def test_sources_that_have_no_columns():
    for name in ("scenes", "reviews"):
        with pytest.raises(xl.InputError, match=f"for data from files, {name} has no columns"):
            open_source(name, group_by="x")
    with pytest.raises(xl.InputError, match="columns: expected image=NAME"):
        open_source("scenes", columns="x")


def test_what_a_hash_covers(folder, tmp_path):
    before = hash_source(str(folder), "folder")
    (folder / "ant" / "animal00_0.png").write_bytes(b"changed")  # names alone decide a folder's splits
    assert hash_source(str(folder), "folder") == before
    (folder / "ant" / "new.png").write_bytes(b"")
    assert hash_source(str(folder), "folder") != before
    (tmp_path / "x.tar").write_bytes(b"a" * 200_000)
    before = hash_source(str(tmp_path / "x.tar"), "shards")
    (tmp_path / "x.tar").write_bytes(b"a" * 199_999 + b"b")
    assert hash_source(str(tmp_path / "x.tar"), "shards") != before
