"""Samples without labels: their names, what is read of them and when, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import exitlens as xl
from exitlens.data.files import list_images
from exitlens.data.readers import ImageFiles
from exitlens.data.rows import ColumnChoice
from exitlens.data.streams import Listing, SampleStream, list_samples, open_stream
from exitlens.errors import DataError, InputError
from tests.data.conftest import PREPROCESS, SMALL, TS, encode, list_members, write, write_tar

TWO = xl.data.SeriesPreprocess((5.0,) * 2, (2.0,) * 2)


@pytest.fixture
def flat(tmp_path):
    (tmp_path / "flat").mkdir()
    for i in range(10):
        (tmp_path / "flat" / f"{i}.png").write_bytes(encode(i, size=(20, 24)))
    return tmp_path / "flat"


@pytest.fixture(scope="module")
def tokens():
    pytest.importorskip("tokenizers")
    return xl.data.TextPreprocess(xl.data.word_tokenizer(["a b c"]), 6)


def read(preprocess, data, columns="", group_by="", **options):
    stream = open_stream(preprocess, str(data), options.pop("batch_size", 5), ColumnChoice(columns, group_by), **options)
    return stream, list(stream)


def test_batches_are_those_of_the_whole(flat):
    files = list_images(flat)
    stream = xl.data.ImageStream(files, PREPROCESS, 4)
    assert (len(stream), stream.total) == (3, 10)
    for _ in range(2):  # again from the start
        batches = list(stream)
        assert [len(batch) for batch in batches] == [4, 4, 2]
        assert torch.equal(torch.cat(batches), xl.data.load_unlabelled(flat, PREPROCESS).inputs)
        assert (list(stream.files), stream.bad) == (files, [])


def test_images_are_read_when_asked_for(flat, monkeypatch):
    seen = []
    original = ImageFiles.read
    monkeypatch.setattr(ImageFiles, "read", lambda self, i: (seen.append(Path(self.name(i))), original(self, i))[1])
    stream = xl.data.ImageStream(list_images(flat), PREPROCESS, 3, workers=0)
    assert not seen
    next(iter(stream))
    assert seen == list(stream.files) == list_images(flat)[:3]


@pytest.mark.parametrize("skip_bad", [True, False])
def test_bad_files_are_left_out_or_end_the_stream_after_those_before(flat, skip_bad):
    for i in (2, 5, 9):
        (flat / f"{i}.png").write_text("not an image")
    files = list_images(flat)
    stream = xl.data.ImageStream(files, PREPROCESS, 4, skip_bad)
    batches = []
    if skip_bad:
        batches += stream
        assert [len(batch) for batch in batches] == [4, 3]
        assert [path.stem for path in stream.files] == ["0", "1", "3", "4", "6", "7", "8"]
        assert [reason.split(":")[0] for reason in stream.bad] == [str(files[i]) for i in (2, 5, 9)]
        return
    with pytest.raises(DataError, match=r"2\.png: cannot be read as an image .*. Fix: remove it, or pass --skip-bad"):
        batches.extend(stream)
    assert [len(batch) for batch in batches] == [2]
    assert list(stream.files) == files[:2]
    assert len(stream.bad) == 1
    with pytest.raises(DataError, match="give another one"):
        list(xl.data.ImageStream([files[2]], PREPROCESS, 4))


@pytest.mark.slow
def test_chosen_rows_come_with_their_groups(flat, tokens):
    names = [str(path) for path in list_images(flat)]
    (flat / "4.png").write_text("not an image")
    words = [f"p{i // 3}" for i in range(10)]
    listing = Listing(names, ImageFiles(Path(), names, PREPROCESS), [1, 4, 5, 8], words, ["known"])
    stream = SampleStream(listing, PREPROCESS, 3, True)
    assert (stream.total, stream.bad) == (5, ["known"])
    for _ in range(2):
        (batch,) = stream
        assert batch.labels is None
        assert batch.groups.tolist() == [0, 1, 2]
        assert list(stream.files) == [names[i] for i in (1, 5, 8)]
        assert list(stream.groups) == ["p0", "p1", "p2"]
        assert len(stream.bad) == 2
    drawn = SampleStream(listing, PREPROCESS, 3, True).take_drawn(lambda count, groups: (groups[:count] > 0).nonzero()[:, 0])
    assert [batch.groups.tolist() for batch in drawn] == [[1, 2]]
    assert (list(drawn.files), drawn.find_places().tolist()) == ([names[i] for i in (5, 8)], [2, 3])
    assert (drawn.total, len(drawn.bad)) == (4, 2)
    texts = SampleStream(Listing(names, ["a"] * 10, [0, 2, 3, 9], words), tokens, 2)
    assert [batch.groups.tolist() for batch in texts] == [[0, 0], [1, 3]]
    assert list(texts.files) == [names[i] for i in (0, 2, 3, 9)]


def test_texts_are_encoded_batch_by_batch(tokens):
    texts, names = ["a", "b c", "c a b"], ["t:1", "t:2", "t:4"]
    stream = SampleStream(Listing(names, texts), tokens, 2)
    assert (len(stream), stream.total) == (2, 3)
    batches = iter(stream)
    first = next(batches)
    assert list(stream.files) == names[:2]
    rest = next(batches)
    for name, values in tokens.encode(texts).items():
        assert torch.equal(torch.cat([first[name], rest[name]]), values)
    assert (list(stream.files), stream.bad) == (names, [])


@pytest.mark.parametrize("size", [0, -1, 1.5])
def test_wrong_arguments(size):
    with pytest.raises(InputError, match="batch_size: expected a whole number of 1 or more"):
        xl.data.ImageStream([], PREPROCESS, size)
    with pytest.raises(InputError, match="preprocess: expected Preprocess"):
        xl.data.ImageStream([], None, 4)
    with pytest.raises(InputError, match="preprocess: expected one of"):
        open_stream(None, "x", 4)


def first_pixels(listing):
    return [int(listing.content.read(i)[0, 0, 0]) for i in listing.rows]


def test_rows_of_parquet(make_table, tmp_path):
    path = str(tmp_path / "x.parquet")
    make_table(10).to_parquet(path)
    found = list_samples(SMALL, path, ColumnChoice(group_by="patient"))
    assert list(found.names) == [f"{path}:{i}" for i in range(10)]
    assert first_pixels(found) == list(range(10))
    assert found.groups == ["p0"] * 4 + ["p1"] * 4 + ["p2"] * 2
    assert found.content.name(3) == f"{path}:3"
    assert list_samples(SMALL, path, ColumnChoice(group_by=r"^(p\d+)_")).groups == found.groups
    stream, _ = read(SMALL, path, without={f"{path}:{i}" for i in range(8)}, cache=tmp_path / "cache")
    assert list(stream.files) == [f"{path}:8", f"{path}:9"]
    assert len([p for p in (tmp_path / "cache").rglob("*") if p.is_file()]) == 2


def test_parts_of_a_saved_data_set_come_one_after_the_other(make_table, tmp_path):
    parts = {"train": make_table(3), "test": make_table(2, start=3).remove_columns("label")}
    for name, part in parts.items():
        part.save_to_disk(tmp_path / "x" / name)
    (tmp_path / "x" / "dataset_dict.json").write_text(json.dumps({"splits": list(parts)}))
    found = list_samples(SMALL, str(tmp_path / "x"))
    places = ["train:0", "train:1", "train:2", "test:0", "test:1"]
    assert list(found.names) == [f"{tmp_path}/x:{place}" for place in places]
    assert first_pixels(found) == [0, 1, 2, 3, 4]


def test_keys_name_the_rows_and_have_to_tell_them_apart(hf, tmp_path):
    path = str(tmp_path / "x.parquet")
    rows = {"image": [encode(i) for i in range(4)], "id": ["a", "b", " ", "d"], "twice": ["a", "b", "c", "b"]}
    hf.Dataset.from_dict(rows).to_parquet(path)
    with pytest.raises(DataError, match=r"1 of 4 rows cannot be read[^#]*x.parquet:2: no key"):
        list_samples(SMALL, path, ColumnChoice("image=image,key=id"))
    found = list_samples(SMALL, path, ColumnChoice("image=image,key=id"), skip_bad=True)
    assert ([found.names[i] for i in found.rows], len(found.bad)) == (["a", "b", "d"], 1)
    with pytest.raises(DataError, match=r"the key 'b' stands in 2 rows of 'twice'"):
        list_samples(SMALL, path, ColumnChoice("image=image,key=twice"))


def test_texts_of_a_table_are_read_when_asked_for(hf, tokens, tmp_path):
    path = str(tmp_path / "x.parquet")
    hf.Dataset.from_dict({"review": ["good ", "bad", None, " "], "who": ["a", "b", "c", "d"]}).to_parquet(path)
    with pytest.raises(DataError, match=r"2 of 4 rows cannot be read"):
        list_samples(tokens, path, ColumnChoice("text=review"))
    found = list_samples(tokens, path, ColumnChoice("text=review", "who"), skip_bad=True)
    assert (list(found.content), found.content[:2], found.rows) == (["good", "bad", "", ""], ["good", "bad"], [0, 1])
    assert found.groups == ["a", "b", "c", "d"]


def test_members_of_shards(tokens, tmp_path):
    write_tar(tmp_path / "s" / "train-0.tar", list_members(range(4)))
    write_tar(tmp_path / "s" / "val-0.tar", [*list_members(range(4, 6)), ("9.json", b'{"patient": "p"}')])
    found = list_samples(SMALL, str(tmp_path / "s"), ColumnChoice(group_by="patient"))
    assert found.names[0] == f"{tmp_path}/s/train-0.tar/0000.png"
    assert found.groups == ["0"] * 4 + ["1"] * 2 + ["p"]
    assert first_pixels(found._replace(rows=range(6))) == list(range(6))
    with pytest.raises(DataError, match="9: has no image"):
        found.content.read(6)
    assert list_samples(SMALL, str(tmp_path / "s"), ColumnChoice(group_by=r"(\d)$")).groups == list("0123459")
    write_tar(tmp_path / "t.tar", [(f"{i}.txt", b"word") for i in range(3)])
    found = list_samples(tokens, str(tmp_path / "t.tar"))
    assert (list(found.content), list(found.names)) == (["word"] * 3, [f"{tmp_path}/t.tar/{i}" for i in range(3)])
    (tmp_path / "t.tar").write_bytes((tmp_path / "t.tar").read_bytes()[:2000])
    with pytest.raises(DataError, match=r"t.tar is damaged"):
        list_samples(tokens, str(tmp_path / "t.tar"))
    assert "t.tar is damaged" in list_samples(tokens, str(tmp_path / "t.tar"), skip_bad=True).bad[0]


def test_a_folder_of_images_at_any_depth(folder):
    (folder / "predictions.parquet").write_bytes(b"")  # a table beside images changes nothing
    found = list_samples(PREPROCESS, str(folder), ColumnChoice(group_by=r"^(\w+)/"))
    assert list(found.names) == sorted(map(str, folder.rglob("*.png")))
    assert found.groups == ["cat"] * 12 + ["dog"] * 12 + ["emu"] * 12
    one = str(folder / "cat" / "00.png")
    assert list(list_samples(PREPROCESS, one).names) == [one]
    with pytest.raises(InputError, match=r"columns: .*00.png holds files of one image each, without columns"):
        list_samples(PREPROCESS, one, ColumnChoice("image=x"))


def test_lines_of_files_of_texts(tokens, tmp_path):
    table = write(tmp_path, "a.csv", 'text,who,id\n"good, very good",ann,x\nbad,bob,y\n\n"two\nlines",ann,z\n')
    found = list_samples(tokens, table, ColumnChoice(group_by="who"))
    assert list(found.content) == ["good, very good", "bad", "two\nlines"]
    assert list(found.names) == [f"{table}:{line}" for line in (2, 3, 6)]
    assert found.groups == ["ann", "bob", "ann"]
    assert list_samples(tokens, table, ColumnChoice(group_by=r":(\d)")).groups == ["2", "3", "6"]
    named = list_samples(tokens, table, ColumnChoice("text=who,key=id"))
    assert (list(named.content), list(named.names)) == (["ann", "bob", "ann"], ["x", "y", "z"])
    with pytest.raises(DataError, match=r"the key 'ann' stands in 2 rows"):
        list_samples(tokens, table, ColumnChoice("key=who"))
    lines = write(tmp_path, "a.txt", "one line, as it is\r\n\n  another\n")
    assert list(list_samples(tokens, lines).names) == [f"{lines}:1", f"{lines}:3"]
    bad = write(tmp_path, "bad.txt", b"good\n\xff\n")
    with pytest.raises(DataError, match=r"bad.txt:2: text: has bytes that are not UTF-8"):
        list_samples(tokens, bad)
    found = list_samples(tokens, bad, skip_bad=True)
    assert ([found.content[i] for i in found.rows], "bad.txt:2" in found.bad[0]) == (["good"], True)


def test_files_of_texts_that_are_named_by_split_are_one(tokens, tmp_path):
    names = [write(tmp_path, "train.csv", "text\na\nb\n"), write(tmp_path, "test.jsonl", '{"text": "c"}\n{"text": 1}\n')]
    found = list_samples(tokens, str(tmp_path), skip_bad=True)
    assert [found.names[i] for i in found.rows] == [f"{names[1]}:1", f"{names[0]}:2", f"{names[0]}:3"]
    assert [found.content[i] for i in found.rows] == ["c", "a", "b"]


@pytest.mark.parametrize(
    ("name", "kind", "columns", "message"),
    [
        ("none.csv", "text", "", "none.csv cannot be read"),
        ("none", "text", "", "is not a file of texts: expected .csv or .jsonl or .txt"),
        ("none", "image", "", "no file or folder"),
        ("x.csv", "image", "", "x.csv holds texts, the network takes images"),
        ("x.csv", "text", "image=a", "the network takes texts, got image=NAME"),
        ("x.csv", "text", "", "no column 'text'"),
        ("empty.txt", "text", "", "holds no rows"),
        ("n.csv", "text", "", "holds series, volumes or vectors, the network takes texts"),
        ("n.csv", "image", "", "holds series, volumes or vectors, the network takes images"),
    ],
)
def test_what_cannot_be_read(tmp_path, tokens, name, kind, columns, message):
    write(tmp_path, "x.csv", "a\nb\n")
    write(tmp_path, "n.csv", "a,b,label\n1.5,2,x\n")
    write(tmp_path, "empty.txt", "\n \n")
    with pytest.raises((DataError, InputError), match=message):
        list_samples(tokens if kind == "text" else SMALL, str(tmp_path / name), ColumnChoice(columns))


def test_a_folder_of_series(series_folder):
    (series_folder / "notes.txt").write_text("no data")
    stream, batches = read(TWO, series_folder)
    assert [len(batch) for batch in batches] == [5, 5, 5, 5, 4]
    assert (stream.total, stream.bad, len(stream)) == (24, [], 5)
    paths = sorted(map(str, series_folder.rglob("*.npy")))
    assert list(stream.files) == paths
    torch.testing.assert_close(torch.cat(batches), TWO.normalise(torch.from_numpy(np.stack([np.load(p) for p in paths]))))
    _, rest = read(TWO, series_folder, workers=2, without=paths[:20])
    assert torch.cat(rest).equal(torch.cat(batches)[20:])
    _, (batch,) = read(TWO, series_folder, group_by=r"(p\d)_", batch_size=24)
    assert batch.groups.tolist() == [i // 3 % 4 for i in range(24)]
    with pytest.raises(InputError, match="cache: it is for images, these data are series"):
        read(TWO, series_folder, cache=series_folder)


def test_one_series_and_bad_ones(series_folder):
    path = series_folder / "calm" / "p0_00.npy"
    stream, (batch,) = read(TWO, path)
    assert (batch.shape, list(stream.files)) == ((1, 2, 30), [str(path)])
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"p0_00.npy: not a .npy file"):
        read(TWO, path)
    stream, batches = read(TWO, series_folder, skip_bad=True)
    assert (sum(map(len, batches)), len(stream.bad)) == (23, 1)
    with pytest.raises(DataError, match=r"no file or folder .*none. Fix: give a file of a series"):
        read(TWO, series_folder / "none")
    with pytest.raises(InputError, match=r"columns: .*without columns. Fix: leave them out"):
        read(TWO, series_folder, "series=a")


def test_files_of_many_series(tmp_path):
    path = write(tmp_path, "x.ts", TS)
    stream, (batch,) = read(TWO, path, group_by=r":(\d+)$")
    assert (list(stream.files), batch.groups.tolist()) == ([f"{path}:9", f"{path}:10"], [1, 0])
    assert TWO.restore(batch.inputs)[1].tolist() == [[7, 8, 9], [10, 11, 12]]
    with pytest.raises(InputError, match=r"is a .ts file, without columns"):
        read(TWO, path, "series=a")
    (tmp_path / "parts").mkdir()
    for part in ("TRAIN", "TEST"):
        write(tmp_path / "parts", f"X_{part}.ts", TS)
    assert len(read(TWO, tmp_path / "parts")[1][0]) == 4
    path = write(tmp_path, "x.csv", 'id,signal\nu,"[[1, 2], [3, 4]]"\nv,"[[5, 6], [7, 8]]"\nw,"[1, 2]"\n')
    with pytest.raises(DataError, match=r"1 of 3 rows cannot .*\n.*x.csv:4: expected 2 channel"):
        read(TWO, path)
    stream, (batch,) = read(TWO, path, "key=id,series=signal", skip_bad=True)
    assert list(stream.files) == ["u", "v"]
    assert TWO.restore(batch)[1].tolist() == [[5, 6], [7, 8]]
    path = write(tmp_path, "x.csv", "a,b\n1,2\n3,4\n5,6\n")  # one series
    assert TWO.restore(read(TWO, path)[1][0]).tolist() == [[[1, 3, 5], [2, 4, 6]]]


def test_tables_of_vectors(tmp_path):
    own = xl.data.VectorPreprocess((0.0, 0.0), (1.0, 1.0), ("b", "a"))
    path = write(tmp_path, "x.csv", "a,b,site,id\n1,2,x,p\n3,4,y,q\n5,,y,r\n")
    with pytest.raises(DataError, match=r"x.csv:4: a gap .NaN. for feature 'b'"):
        read(own, path)
    stream, (batch,) = read(own, path, "key=id", "site", skip_bad=True)
    assert batch.inputs.tolist() == [[2, 1], [4, 3]]
    assert (list(stream.files), batch.groups.tolist(), stream.total) == (["p", "q"], [0, 1], 3)
    path = write(tmp_path, "y.csv", "a,b,site,id\n1,2,x,p\n3,4,y,q\n5,6,y,r\n")
    nameless = xl.data.VectorPreprocess((0.0,), (1.0,))
    assert read(nameless, path, "features=a")[1][0].flatten().tolist() == [1, 3, 5]
    for preprocess, data, columns, message in (
        (nameless, path, "", "expected 1 features as in training, got 2"),
        (own, path, "key=site", "columns: the key 'y' stands in 2 rows of 'site'"),
        (own, path, "text=id", "the network takes vectors, got text=NAME. Fix: give features=NAME"),
        (own, tmp_path, "", "is not a table of numbers"),
    ):
        with pytest.raises((DataError, InputError), match=message):
            read(preprocess, data, columns, skip_bad=True)


def test_parquet_of_vectors_or_of_one_series(hf, tmp_path):
    path = tmp_path / "x.parquet"
    hf.Dataset.from_dict({"b": [2.0, 4.0], "a": [1, 3]}).to_parquet(path)
    stream, (batch,) = read(xl.data.VectorPreprocess((0.0, 0.0), (1.0, 1.0), ("a", "b")), path)
    assert (batch.tolist(), list(stream.files)) == ([[1, 2], [3, 4]], [f"{path}:0", f"{path}:1"])
    named = xl.data.SeriesPreprocess((0.0,) * 2, (1.0,) * 2, names=("a", "b"))
    assert read(named, path)[1][0].tolist() == [[[1, 3], [2, 4]]]
    hf.Dataset.from_dict({"s": [[1.0, 2.0], [3.0, 4.0], None]}).to_parquet(tmp_path / "s.parquet")
    _, (batch,) = read(xl.data.SeriesPreprocess((0.0,), (1.0,)), tmp_path / "s.parquet", skip_bad=True)
    assert batch.tolist() == [[[1, 2]], [[3, 4]]]
