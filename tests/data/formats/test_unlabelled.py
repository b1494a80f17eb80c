"""Rows without labels: their names, what is read of them, and what they refuse."""

import json

import pytest

import exitlens as xl
from exitlens.data.formats.unlabelled import list_unlabelled
from tests.data.formats.conftest import PREPROCESS, encode, list_members, write_tar


def first_pixels(found):
    reader = found.images(PREPROCESS)
    return [int(reader.read(i)[0, 0, 0]) for i in found.good]


def test_rows_of_parquet(make_table, tmp_path):
    path = str(tmp_path / "x.parquet")
    make_table(10).to_parquet(path)
    found = list_unlabelled(path, "image", group_by="patient")
    assert list(found.names) == [f"{path}:{i}" for i in range(10)]
    assert first_pixels(found) == list(range(10))
    assert found.groups == ["p0"] * 4 + ["p1"] * 4 + ["p2"] * 2
    assert found.images(PREPROCESS).name(3) == f"{path}:3"
    assert list_unlabelled(path, "image", group_by=r"^(p\d+)_").groups == found.groups
    assert first_pixels(found.leave_out({f"{path}:{i}" for i in range(8)})) == [8, 9]


def test_parts_of_a_saved_data_set_come_one_after_the_other(make_table, hf, tmp_path):
    parts = {"train": make_table(3), "test": make_table(2, start=3).remove_columns("label")}
    for name, part in parts.items():
        part.save_to_disk(tmp_path / "x" / name)
    (tmp_path / "x" / "dataset_dict.json").write_text(json.dumps({"splits": list(parts)}))
    found = list_unlabelled(str(tmp_path / "x"), "image")
    assert [name.removeprefix(f"{tmp_path}/x:") for name in found.names] == [
        "train:0",
        "train:1",
        "train:2",
        "test:0",
        "test:1",
    ]
    assert first_pixels(found) == [0, 1, 2, 3, 4]


def test_keys_name_the_rows_and_have_to_tell_them_apart(make_table, tmp_path):
    table = make_table(6).add_column("id", [f"scan {i}" for i in range(5)] + [None])
    path = str(tmp_path / "x.parquet")
    table.to_parquet(path)
    with pytest.raises(xl.DataError, match=r"x.parquet:5: no key"):
        list_unlabelled(path, "image", "key=id")
    found = list_unlabelled(path, "image", "image=image,key=id", skip_bad=True)
    assert [found.names[i] for i in found.good] == [f"scan {i}" for i in range(5)]
    assert found.bad == (f"{path}:5: no key",)
    with pytest.raises(xl.DataError, match=r"columns: the key 'p0' stands in 4 rows of 'patient'"):
        list_unlabelled(path, "image", "key=patient")
    with pytest.raises(xl.DataError, match="no column 'ids' for the keys"):
        list_unlabelled(path, "image", "key=ids")
    with pytest.raises(xl.DataError, match=r"group_by: .* has no column 'patients'"):
        list_unlabelled(path, "image", group_by="patients")


def test_texts_of_a_table_are_read_when_they_are_asked_for(hf, tmp_path):
    path = str(tmp_path / "x.parquet")
    hf.Dataset.from_dict({"text": ["one", " two ", None, "  "], "label": ["a"] * 4}).to_parquet(path)
    with pytest.raises(xl.DataError, match=r"2 of 4 rows(.|\n)*x.parquet:2: no text"):
        list_unlabelled(path, "text")
    found = list_unlabelled(path, "text", skip_bad=True)
    assert [found.texts[i] for i in found.good] == found.texts[:2] == ["one", "two"]
    assert len(found.texts) == 4
    assert [reason.removeprefix(path) for reason in found.bad] == [":2: no text", ":3: no text"]
    with pytest.raises(xl.DataError, match=r"no column is known to hold the image: name them by --columns image=NAME. It"):
        list_unlabelled(path, "image")


def test_members_of_shards(tmp_path):
    members = [*list_members(range(4)), ("deep/5.seg.png", encode(9)), ("deep/5.JPG", encode(5, kind="JPEG"))]
    path = write_tar(tmp_path / "x.tar", members)
    found = list_unlabelled(str(path), "image")
    names = [f"{path}/{name}" for name in ("0000.png", "0001.png", "0002.png", "0003.png", "deep/5.JPG")]
    assert list(found.names) == names
    assert first_pixels(found)[:4] == [0, 1, 2, 3]
    assert found.images(PREPROCESS).name(4) == names[4]
    assert list_unlabelled(str(path), "image", group_by=r"(\d)$").groups == ["0", "1", "2", "3", "5"]
    with pytest.raises(xl.DataError, match=r"deep/5.JPG: no group"):
        list_unlabelled(str(path), "image", group_by="patient")
    some = list_unlabelled(str(path), "image", group_by="patient", skip_bad=True)
    assert (list(some.good), some.groups) == ([0, 1, 2, 3], ["0"] * 4 + [""])
    with pytest.raises(xl.DataError, match=r"group_by: .* has no 'patients'"):
        list_unlabelled(str(path), "image", group_by="patients")


def test_texts_and_keys_of_shards(tmp_path):
    members = [(f"{i}.{kind}", f"{kind} {i}".encode()) for i in range(2) for kind in ("txt", "id")]
    path = str(write_tar(tmp_path / "x.tar", members))
    found = list_unlabelled(path, "text", "text=txt,key=id")
    assert (found.texts, list(found.names)) == (["txt 0", "txt 1"], ["id 0", "id 1"])
    assert list(list_unlabelled(path, "text").names) == [f"{path}/0", f"{path}/1"]
    write_tar(tmp_path / "empty.tar", [])
    with pytest.raises(xl.DataError, match="has no samples"):
        list_unlabelled(str(tmp_path / "empty.tar"), "image")


def test_a_damaged_shard(tmp_path):
    path = write_tar(tmp_path / "x.tar", list_members(range(4)))
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(xl.DataError, match=r"x.tar is damaged"):
        list_unlabelled(str(path), "image")
    found = list_unlabelled(str(path), "image", skip_bad=True)
    assert len(found.good) > 0
    assert "is damaged" in found.bad[0]


def test_a_folder_of_images_may_hold_tables_too(tmp_path):
    (tmp_path / "p1").mkdir()
    (tmp_path / "p1" / "b.png").write_bytes(encode(7))
    (tmp_path / "a.png").write_bytes(encode(8))
    (tmp_path / "predictions.parquet").write_bytes(b"")
    (tmp_path / "metadata.csv").write_text("file_name\na.png\n")
    found = list_unlabelled(str(tmp_path), "image", group_by="^.")
    assert list(found.names) == [str(tmp_path / "a.png"), str(tmp_path / "p1" / "b.png")]
    assert (first_pixels(found), found.groups) == ([8, 7], ["a", "p"])
    assert list(list_unlabelled(str(tmp_path / "a.png"), "image").names) == [str(tmp_path / "a.png")]
    with pytest.raises(xl.InputError, match=r"columns: .*a.png holds images, without columns"):
        list_unlabelled(str(tmp_path / "a.png"), "image", "image=x")


def write(folder, name, content):
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return str(folder / name)


def test_numbers_are_no_images(tmp_path):
    (tmp_path / "x.csv").write_text("a,b,label\n1.5,2,x\n")
    for wanted in ("image", "text"):
        with pytest.raises(xl.InputError, match=f"holds series, volumes or vectors, the network takes {wanted}s"):
            list_unlabelled(str(tmp_path / "x.csv"), wanted)


def test_lines_of_files_of_texts(tmp_path):
    table = write(tmp_path, "a.csv", 'text,who,id\n"good, very good",ann,x\nbad,bob,y\n\n"two\nlines",ann,z\n')
    found = list_unlabelled(table, "text", group_by="who")
    assert found.texts == ["good, very good", "bad", "two\nlines"]
    assert list(found.names) == [f"{table}:{line}" for line in (2, 3, 6)]
    assert found.groups == ["ann", "bob", "ann"]
    assert list_unlabelled(table, "text", group_by=r":(\d)").groups == ["2", "3", "6"]
    named = list_unlabelled(table, "text", "text=who,key=id")
    assert (named.texts, list(named.names)) == (["ann", "bob", "ann"], ["x", "y", "z"])
    with pytest.raises(xl.DataError, match="the key 'ann' stands in 2 rows"):
        list_unlabelled(table, "text", "key=who")
    assert list_unlabelled(write(tmp_path, "a.jsonl", '{"text": "a"}\n{"text": "b"}'), "text").texts == ["a", "b"]
    lines = write(tmp_path, "a.txt", "one line, as it is\r\n\n  another\n")
    assert list(list_unlabelled(lines, "text").names) == [f"{lines}:1", f"{lines}:3"]
    bad = write(tmp_path, "bad.txt", b"good\n\xff\n")
    with pytest.raises(xl.DataError, match="line 2: text: has bytes that are not UTF-8"):
        list_unlabelled(bad, "text")
    found = list_unlabelled(bad, "text", skip_bad=True)
    assert found.texts == ["good"]
    assert "line 2" in found.bad[0]


@pytest.mark.parametrize(
    ("name", "wanted", "columns", "message"),
    [
        ("none.csv", "text", "", "none.csv cannot be read"),
        ("none", "text", "", "is no file of texts: expected .csv or .jsonl or .txt"),
        ("none", "image", "", "no file or folder"),
        ("x.csv", "image", "", "x.csv holds texts, the network takes images"),
        ("x.csv", "text", "image=a", "the network takes texts: give text=NAME in place of image=a"),
        ("x.csv", "text", "", "no column 'text'"),
        ("empty.txt", "text", "", "holds no texts"),
    ],
)
def test_what_cannot_be_read(tmp_path, name, wanted, columns, message):
    write(tmp_path, "x.csv", "a\nb\n")
    write(tmp_path, "empty.txt", "\n \n")
    with pytest.raises((xl.DataError, xl.InputError), match=message):
        list_unlabelled(str(tmp_path / name), wanted, columns)
