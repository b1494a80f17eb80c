import gzip
import io
import json
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from exitlens.data.batches import iterate_batches
from exitlens.data.rows import ColumnChoice
from exitlens.data.shards import ShardImages, find_shards, index_shards, open_shards, read_shard
from exitlens.data.sources import open_source
from exitlens.data.splits import SPLITS
from exitlens.errors import DataError, InputError
from tests.data.conftest import SMALL as PREPROCESS
from tests.data.conftest import check_refused, encode, list_members, read_numbers, write_tar


def test_shards_are_split_read_at_random_and_grouped(tmp_path):
    for shard in range(4):
        write_tar(tmp_path / f"s-{shard:03}.tar", list_members(range(20 * shard, 20 * shard + 20)))
    for name in (tmp_path, tmp_path / "s-*.tar", tmp_path / "s-{000..003}.tar"):
        source = open_source(str(name), size=8, group_by="patient")
        loaded = source.load_splits(SPLITS)
        numbers = {split: read_numbers(part) for split, part in loaded.sets.items()}
        assert sorted(n for found in numbers.values() for n in found) == list(range(80))
        assert [len(numbers[split]) for split in SPLITS] == [56, 8, 8, 8]
        assert all(part.labels.tolist() == [n % 2 for n in numbers[split]] for split, part in loaded.sets.items())
        assert all((part.groups.bincount() % 4 == 0).all() for part in loaded.sets.values())
    assert loaded.sets["test"].classes == ("ant", "bee")
    reader = pickle.loads(pickle.dumps(loaded.sets["test"].reader))
    assert torch.equal(reader.read(70), loaded.sets["test"].reader.read(70))
    assert reader.name(70) == f"{tmp_path / 's-003.tar'}/0070.png"
    batches = list(iterate_batches(loaded.sets["train"], 16, workers=2))
    assert sum(len(batch.labels) for batch in batches) == 56
    by_name = open_source(str(tmp_path), size=8, group_by=r"00\d").load("test")
    assert by_name.groups.unique(return_counts=True)[1].tolist() == [10]


def test_names_and_folders_of_shards_say_the_split(tmp_path):
    write_tar(tmp_path / "a" / "x-train-0.tar", list_members(range(40)))
    write_tar(tmp_path / "a" / "x-val-0.tar", list_members(range(40, 50)))
    write_tar(tmp_path / "b" / "train" / "0.tar", list_members(range(40)))
    write_tar(tmp_path / "b" / "val" / "0.tar", list_members(range(40, 50)))
    for name in ("a", "b"):
        source = open_source(str(tmp_path / name), size=8)
        assert read_numbers(source.load("validation")) == list(range(40, 50))
        assert len(source.load("train")) == 32
    write_tar(tmp_path / "a" / "other.tar", list_members(range(50, 60)))  # not all say it
    assert sum(len(open_source(str(tmp_path / "a"), size=8).load(split)) for split in SPLITS) == 60
    source = open_source(str(tmp_path / "b"), size=8)
    write_tar(tmp_path / "b" / "train" / "1.tar", list_members(range(50, 60)))
    with pytest.raises(DataError, match="not those of training"):
        source.load("train")


def test_split_by_and_columns_of_shards(tmp_path):
    members = []
    for fold, numbers in (("train", range(20)), ("test", range(20, 30))):
        members += list_members(numbers, fold=fold, kind="x")
    path = write_tar(tmp_path / "x.tar", members)
    source = open_source(str(path), size=8, split_by="fold")
    assert read_numbers(source.load("test")) == list(range(20, 30))
    message = "split_by: .* has no column 'folds'; it has image, label, patient, fold, kind. Did you mean"
    check_refused(path, DataError, message, split_by="folds", split="test")
    check_refused(path, DataError, "has 1 class", columns="label=kind", split="test")
    check_refused(path, DataError, "no column 'klass'", columns="label=klass", split="test")
    for role in ("series", "features"):
        with pytest.raises(InputError, match=f"holds shards of images or texts, got {role}=NAME. Fix: give image="):
            open_source(str(path), columns=f"{role}=patient,label=label").load("test")


def test_class_members_captions_and_texts(tmp_path):
    members = []
    for i in range(44):
        members += [(f"x/{i}.jpg", encode(i, kind="JPEG")), (f"x/{i}.cls", f"{i % 11}".encode()), (f"x/{i}.txt", b"a bee")]
    classes = open_source(str(write_tar(tmp_path / "a.tar", members)), size=8).load("train").classes
    assert classes == tuple(map(str, range(11)))  # 10 after 9
    pytest.importorskip("tokenizers")
    members = [m for i in range(40) for m in ((f"{i}.txt", f"number {i}".encode()), (f"{i}.cls", f"{i % 2}".encode()))]
    source = open_source(str(write_tar(tmp_path / "b.tar", members)), size=6)
    assert source.modality.name == "text"
    assert source.load("test").inputs["input_ids"].shape == (4, 6)


def test_samples_that_cannot_be_used(tmp_path):
    members = list(list_members(range(12)))
    members += [("b.png", b"no image"), ("b.json", json.dumps({"label": "ant", "patient": 9}).encode())]
    members += [("c.json", json.dumps({"label": "bee", "patient": 9}).encode())]
    members += [("d.png", encode(0)), ("d.json", b"{")]
    source = open_source(str(write_tar(tmp_path / "x.tar", members)), size=8)
    with pytest.raises(DataError, match=r"1 of 15 rows cannot be read.*[^#]*x.tar/d.png: no label"):
        source.load("train")
    bad = []
    for split in SPLITS:
        data = source.load(split, skip_bad=True)
        for _ in iterate_batches(data, 8, workers=0):
            pass
        bad += data.bad
    assert sorted(reason.split("x.tar/")[1][:13] for reason in bad) == ["b.png: cannot", "c: has no ima"]


def test_names_that_are_not_utf8(tmp_path):
    members = [(f"caf\udce9/{name}", content) for name, content in list_members(range(12))]
    members += [("._hidden.png", b""), (".DS_Store", b"")]
    source = open_source(str(write_tar(tmp_path / "x.tar", members)), size=8, group_by=r"caf.*/00(\d\d)")
    data = source.load("train")
    assert "caf\udce9/" in data.name(0)
    assert len(data) == len(data.groups.unique()) > 0


def test_truncated_compressed_and_empty_shards(tmp_path):
    whole = write_tar(tmp_path / "w" / "x.tar", list_members(range(20))).read_bytes()
    for name, size, count in (("cut.tar", 18 * 1024 + 700, 9), ("even.tar", 18 * 1024, 8)):
        (tmp_path / name).write_bytes(whole[:size])
        message = f"{name} is damaged, compressed or not a tar file, after sample '00.*--skip-bad"
        check_refused(tmp_path / name, DataError, message)
        kept = sum(len(open_source(str(tmp_path / name), size=8).load(split, skip_bad=True)) for split in SPLITS)
        assert kept == count  # the last sample before the damage may miss a member
    (tmp_path / "z.tar").write_bytes(gzip.compress(whole))
    for name in ("z.tar", "none.tar"):
        with pytest.raises(DataError, match=f"{name} (is damaged, compressed|cannot be read)"):
            assert open_source(str(tmp_path / name)).modality
    with pytest.raises(DataError, match="no tar files"):
        open_shards(str(tmp_path / "none-*.tar"))
    write_tar(tmp_path / "empty.tar", [])
    check_refused(tmp_path / "empty.tar", DataError, "has no samples")


def test_what_is_not_found_behind_damage_is_told_with_the_damage(tmp_path):
    path = write_tar(tmp_path / "x.tar", [("0.png", encode(0)), ("a.png", encode(1)), ("b.png", encode(2))])
    os.truncate(path, 2600)
    with pytest.raises(DataError, match=r"no column seems to hold the label, .*; .*x.tar is damaged"):
        open_shards(str(path)).find_columns(ColumnChoice())


def test_shards_of_a_name(tmp_path):
    for name in ("b.tar", "a.tar", "sub/c.tar", ".hidden.tar", "d.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = [str(path.relative_to(tmp_path)) for path in find_shards(str(tmp_path))]
    assert sorted(names) == ["a.tar", "b.tar", "sub/c.tar"]
    assert find_shards(str(tmp_path / "a.tar")) == [tmp_path / "a.tar"]
    assert find_shards(str(tmp_path / "?.tar")) == [tmp_path / "a.tar", tmp_path / "b.tar"]
    assert find_shards(str(tmp_path / "{a,z}.tar")) == [tmp_path / "a.tar", tmp_path / "z.tar"]
    assert find_shards("a-{008..010}.tar") == [Path(f"a-{i}.tar") for i in ("008", "009", "010")]
    assert find_shards("{x,y}-{1..2}.tar") == [Path(f"{name}.tar") for name in ("x-1", "x-2", "y-1", "y-2")]
    assert find_shards(str(tmp_path / "d.txt")) == []


def test_samples_of_a_shard(tmp_path):
    members = [("./a/1.JPG", b"12345"), ("a/1.cls", b" 3\n"), ("a/1.seg.png", b"mask"), ("a/2.txt", b"words")]
    bad = []
    first, second = read_shard(write_tar(tmp_path / "x.tar", members), bad)
    assert first == ("a/1", {"cls": "3"}, "a/1.JPG", 512, 5)
    assert second == ("a/2", {"txt": "words"}, "", 0, -1)
    assert bad == []


def test_an_index_keeps_what_is_wanted(tmp_path):
    members = [[(f"{i}.png", b"123"), (f"{i}.cls", b"7"), (f"{i}.txt", b"x")] for i in range(2)]
    paths = [write_tar(tmp_path / f"{i}.tar", values) for i, values in enumerate(members)]
    write_tar(tmp_path / "2.tar", [("2.cls", b"8")])
    index = index_shards((*paths, tmp_path / "2.tar", tmp_path / "none.tar"), frozenset(["cls", "other"]))
    assert list(index.members) == ["0.png", "1.png", "2"]
    assert index.places.tolist() == [[0, 512, 3], [1, 512, 3], [2, 0, -1]]
    assert index.values == {"cls": ["7", "7", "8"], "other": [None] * 3}
    assert len(index.bad) == 1


def test_a_tar_file_that_shrinks_or_goes_away(tmp_path):
    path = write_tar(tmp_path / "x.tar", [("a.png", encode(3))])
    (sample,) = read_shard(path, [])
    reader = ShardImages([path], np.array([[0, sample.offset, sample.size]]), [f"{path}/a.png"], PREPROCESS)
    assert reader.read(0)[0, 0, 0] == 3
    os.truncate(path, 540)
    with pytest.raises(DataError, match=r"x.tar/a.png: the tar file ends before its image does"):
        reader.read(0)
    path.unlink()
    with pytest.raises(DataError, match=r"x.tar/a.png: cannot be read \(FileNotFoundError"):
        reader.read(0)


def test_a_sample_that_stands_twice_is_kept_once_and_told(tmp_path):
    members = [("a.png", b"123"), ("a.cls", b"0"), ("b.png", b"123"), ("b.cls", b"1")]
    paths = [write_tar(tmp_path / "0.tar", [*members, *members]), write_tar(tmp_path / "1.tar", members)]
    index = index_shards(tuple(paths), frozenset(["cls"]))
    assert list(index.members) == ["a.png", "b.png"] * 2
    assert index.places[:, 0].tolist() == [0, 0, 1, 1]
    assert index.values == {"cls": ["0", "1"] * 2}
    assert index.bad == (f"{paths[0]} has 'a.png' twice, as of 2 in all",)


@pytest.mark.parametrize("words", [{"GNU.sparse.major": "1"}, {"GNU.sparse.map": "0,5", "GNU.sparse.size": "9"}])
def test_members_stored_with_holes_are_no_samples(tmp_path, words):
    """Their bytes do not lie in the file as they are; Python's reader stumbles over some."""
    sparse = words | {"GNU.sparse.minor": "0", "GNU.sparse.realsize": "9"}
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        for name, extra in (("0.png", {}), ("a.png", {}), ("b.png", sparse)):
            entry = tarfile.TarInfo(name)
            entry.size, entry.pax_headers = 5, extra
            archive.addfile(entry, io.BytesIO(b"99999"))
    index = index_shards((tmp_path / "x.tar",), frozenset())
    assert list(index.members) == ["0.png"]
    assert "after sample 'a'" in index.bad[0]
