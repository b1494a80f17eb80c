import os

import numpy as np
import pytest

import exitlens as xl
from exitlens.data.formats.tars import ShardImages, expand_braces, find_shards, index_shards, read_shard
from tests.data.formats.conftest import PREPROCESS, encode, write_tar


def test_braces():
    assert expand_braces("a-{008..010}.tar") == ["a-008.tar", "a-009.tar", "a-010.tar"]
    assert expand_braces("{x,y}-{1..2}") == ["x-1", "x-2", "y-1", "y-2"]
    assert expand_braces("plain.tar") == ["plain.tar"]


def test_shards_of_a_name(tmp_path):
    for name in ("b.tar", "a.tar", "sub/c.tar", ".hidden.tar", "d.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = [str(path.relative_to(tmp_path)) for path in find_shards(str(tmp_path))]
    assert sorted(names) == ["a.tar", "b.tar", "sub/c.tar"]
    assert find_shards(str(tmp_path / "a.tar")) == [tmp_path / "a.tar"]
    assert find_shards(str(tmp_path / "?.tar")) == [tmp_path / "a.tar", tmp_path / "b.tar"]
    assert find_shards(str(tmp_path / "{a,z}.tar")) == [tmp_path / "a.tar", tmp_path / "z.tar"]
    assert find_shards(str(tmp_path / "d.txt")) == []


def test_samples_of_a_shard(tmp_path):
    members = [("./a/1.JPG", b"12345"), ("a/1.cls", b" 3\n"), ("a/1.seg.png", b"mask"), ("a/2.txt", b"words")]
    bad = []
    first, second = read_shard(write_tar(tmp_path / "x.tar", members), bad)
    assert (first.key, first.values, first.image[1:]) == ("a/1", {"cls": "3"}, (5, "jpg", "a/1.JPG"))
    assert (second.key, second.values, second.image) == ("a/2", {"txt": "words"}, None)
    assert bad == []


def test_an_index_keeps_what_is_wanted(tmp_path):
    paths = [
        write_tar(tmp_path / f"{i}.tar", [(f"{i}.png", b"123"), (f"{i}.cls", b"7"), (f"{i}.txt", b"x")]) for i in range(2)
    ]
    write_tar(tmp_path / "2.tar", [("2.cls", b"8")])
    index = index_shards([*paths, tmp_path / "2.tar", tmp_path / "none.tar"], ["cls", "other"])
    assert list(index.members) == ["0.png", "1.png", "2"]
    assert index.keys == ["0", "1", "2"]
    assert index.places.tolist() == [[0, 512, 3], [1, 512, 3], [2, 0, -1]]
    assert index.values == {"cls": ["7", "7", "8"], "other": [None] * 3}
    assert len(index.bad) == 1


def test_a_tar_file_that_shrinks_or_goes_away(tmp_path):
    path = write_tar(tmp_path / "x.tar", [("a.png", encode(3))])
    (sample,) = read_shard(path, [])
    reader = ShardImages([path], np.array([[0, *sample.image[:2]]]), [sample.image.member], PREPROCESS)
    assert reader.read(0)[0, 0, 0] == 3
    os.truncate(path, 540)
    with pytest.raises(xl.DataError, match=r"x.tar/a.png: the tar file ends before its image does"):
        reader.read(0)
    path.unlink()
    with pytest.raises(xl.DataError, match=r"x.tar/a.png: cannot be read \(FileNotFoundError"):
        reader.read(0)
