import gzip
import json
import pickle

import pytest
import torch

import exitlens as xl
from exitlens.data.batches import iterate_batches
from exitlens.data.formats.shards import open_shards
from exitlens.data.sources import open_source
from exitlens.data.splits import SPLITS
from tests.data.formats.conftest import encode, list_members, write_tar


def _numbers(data):
    """Which images are in a set: see ``encode``."""
    return (data.preprocess.restore(data.inputs)[:, 0, 0, 0] * 255).round().int().tolist()


def test_shards_are_split_read_at_random_and_grouped(tmp_path):
    for shard in range(4):
        write_tar(tmp_path / f"s-{shard:03}.tar", list_members(range(20 * shard, 20 * shard + 20)))
    for name in (tmp_path, tmp_path / "s-*.tar", tmp_path / "s-{000..003}.tar"):
        source = open_source(str(name), size=8, group_by="patient")
        loaded = source.load_splits(SPLITS)
        numbers = {split: _numbers(part) for split, part in loaded.sets.items()}
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
        assert _numbers(source.load("validation")) == list(range(40, 50))
        assert len(source.load("train")) == 32
    write_tar(tmp_path / "a" / "other.tar", list_members(range(50, 60)))  # not all say it
    assert sum(len(open_source(str(tmp_path / "a"), size=8).load(split)) for split in SPLITS) == 60
    source = open_source(str(tmp_path / "b"), size=8)
    write_tar(tmp_path / "b" / "train" / "1.tar", list_members(range(50, 60)))
    with pytest.raises(xl.DataError, match="not those of training"):
        source.load("train")


def test_split_by_and_columns_of_shards(tmp_path):
    members = []
    for fold, numbers in (("train", range(20)), ("test", range(20, 30))):
        members += list_members(numbers, fold=fold, kind="x")
    path = write_tar(tmp_path / "x.tar", members)
    source = open_source(str(path), size=8, split_by="fold")
    assert _numbers(source.load("test")) == list(range(20, 30))
    with pytest.raises(
        xl.DataError, match=r"split_by: .* has no 'folds'; it has image, label, patient, fold, kind. Did you mean"
    ):
        open_source(str(path), split_by="folds").load("test")
    with pytest.raises(xl.DataError, match=r"group_by: .* has no 'patients'"):
        open_source(str(path), group_by="patients").load("test")
    with pytest.raises(xl.DataError, match="has 1 class"):
        open_source(str(path), columns="label=kind").load("test")
    with pytest.raises(xl.DataError, match="no column 'klass'"):
        open_source(str(path), columns="label=klass").load("test")


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
    assert source.load("test").input_ids.shape == (4, 6)


def test_samples_that_cannot_be_used(tmp_path):
    members = list(list_members(range(12)))
    members += [("b.png", b"no image"), ("b.json", json.dumps({"label": "ant", "patient": 9}).encode())]
    members += [("c.json", json.dumps({"label": "bee", "patient": 9}).encode())]
    members += [("d.png", encode(0)), ("d.json", b"{")]
    source = open_source(str(write_tar(tmp_path / "x.tar", members)), size=8)
    with pytest.raises(xl.DataError, match=r"1 of 15 rows cannot be read.*[^#]*x.tar/d.png: no label"):
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
        with pytest.raises(
            xl.DataError, match=f"{name} is damaged, compressed or no tar file, after sample '00.*--skip-bad"
        ):
            open_source(str(tmp_path / name)).load("train")
        kept = sum(len(open_source(str(tmp_path / name), size=8).load(split, skip_bad=True)) for split in SPLITS)
        assert kept == count  # the last sample before the damage may miss a member
    (tmp_path / "z.tar").write_bytes(gzip.compress(whole))
    for name in ("z.tar", "none.tar"):
        with pytest.raises(xl.DataError, match=f"{name} (is damaged, compressed|cannot be read)"):
            assert open_source(str(tmp_path / name)).modality
    with pytest.raises(xl.DataError, match="no tar files"):
        open_shards(str(tmp_path / "none-*.tar"))
    write_tar(tmp_path / "empty.tar", [])
    with pytest.raises(xl.DataError, match="has no samples"):
        open_source(str(tmp_path / "empty.tar")).load("train")
